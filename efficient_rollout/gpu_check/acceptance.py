"""Step "acceptance": how many drafts of a policy stand, of one that was trained and not of random weights."""

from efficient_rollout.bench.acceptance import acceptance
from efficient_rollout.bench.work import TaskPrompts, eos_token_ids
from efficient_rollout.engine.statistics import take_rollout_stats
from efficient_rollout.gpu_check.answers import Question, ask
from efficient_rollout.gpu_check.stand import Measured, Stand, drafting, require, runnable_schemes
from efficient_rollout.policy_config import read_policy_config
from efficient_rollout.tasks.policy import ensure_policy

STEP = "acceptance"
# Longer chains are rare where other requests run; the fourth draft tells how acceptance falls along a chain.
_DRAFTS = 4
_POSITIONS = 1024


def check_acceptance(stand: Stand) -> Measured:
    """Measure the shares of drafts that stand, by scheme and position.

    Responses are natural, at temperature 1.
    """
    sizes = stand.sizes
    policy = ensure_policy(sizes.trained_policy)
    prompts = TaskPrompts(sizes.trained_policy, str(policy)).draw([0] * sizes.num_prompts, seed=0)
    ends = eos_token_ids(read_policy_config(policy))
    asked = [Question(prompt=prompt, seed=seed, ends=ends) for seed, prompt in enumerate(prompts)]
    measured: Measured = {"policy": policy.name, "prompts": len(asked)}
    for scheme in runnable_schemes()[: sizes.most_schemes]:
        with stand.engine(policy, drafting(scheme, _DRAFTS), max_model_len=_POSITIONS) as engine:
            take_rollout_stats(engine.collective_rpc)
            ask(engine, asked, sizes.response_tokens, drafts=(_DRAFTS,))
            rates = acceptance(take_rollout_stats(engine.collective_rpc))
        require(
            rates["num_verify_passes"] > 0, "verified drafts", where=f"{policy.name}, {scheme}", expected="some",
            found=rates["num_verify_passes"],
        )  # fmt: skip
        measured[scheme] = rates
    return measured


def first_draft_acceptance(measured: Measured, scheme: str) -> float:
    """Return the share of first drafts that stand, of what this step measured."""
    return float(measured[scheme]["acceptance_rate"][0])
