"""Step "distribution": the second and third token are drawn from the policy's exact distribution, whatever drafts."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from efficient_rollout.gpu_check.answers import Question, ask, drafted_and_accepted
from efficient_rollout.gpu_check.exact_distribution import Sampling, joint_of_second_and_third, p_value, smallest_power
from efficient_rollout.gpu_check.policies import make_policy
from efficient_rollout.gpu_check.stand import Measured, Stand, drafting, require, runnable_schemes, worker_of
from efficient_rollout.gpu_check.weights import hashed

# Fixed beforehand; one repeat, with other seeds, so that a million checks of a right build fail once.
LEAST_P = 1e-3
_SHIFT = 0.03  # of the mass between two cells: what the test is asked to notice
_PROMPT = (3, 14, 15, 9, 2, 6)
# The first token is of the prompt's pass; both of the following are drafted, or the third is not.
_DRAFTS = (2, 1)


def check_distribution(stand: Stand) -> Measured:
    """Check with a quantized drafter, and with one of other weights, which is mostly wrong."""
    policy = make_policy(stand.folder, "qwen3", stand.sizes)
    joint = joint_of_second_and_third(policy, list(_PROMPT), Sampling())
    num_samples = stand.sizes.num_samples
    measured: Measured = {
        "samples": num_samples,
        "power": round(smallest_power(joint, num_samples, _SHIFT, LEAST_P), 3),
    }
    with stand.engine(policy, drafting(runnable_schemes()[0], max(_DRAFTS))) as engine:
        measured |= _check(engine, stand, joint, "quantized")
        for number, layer in enumerate(worker_of(engine).self_drafter.packed.layers.values()):
            weight = hashed((layer.out_features, layer.in_features), 500 + number) * 2.0**-9
            layer.requantize(weight.to(layer.dtype).to(stand.device), layer.bias)
        measured |= _check(engine, stand, joint, "wrong")
    return measured


def _check(engine: Any, stand: Stand, joint: np.ndarray, drafter: str) -> Measured:
    found = []
    drafted_and_accepted(engine)
    for first_seed in (0, stand.sizes.num_samples):
        found.append(p_value(_pairs(engine, first_seed, stand.sizes.num_samples), joint))
        if found[-1] > LEAST_P:
            break
    require(
        found[-1] > LEAST_P,
        "p of the sampled distribution, and of its repeat",
        where=f"{drafter} drafter",
        expected=f"above {LEAST_P:g}",
        found=found,
    )
    drafted, accepted = drafted_and_accepted(engine)
    require(sum(drafted) > 0, "verified drafts", where=f"{drafter} drafter", expected="some", found=drafted)
    return {f"{drafter}_p": round(found[-1], 4), f"{drafter}_accepted": round(sum(accepted) / sum(drafted), 3)}


def _pairs(engine: Any, first_seed: int, count: int) -> Iterator[tuple[int, int]]:
    asked = [Question(prompt=_PROMPT, seed=seed) for seed in range(first_seed, first_seed + count)]
    for answer in ask(engine, asked, 3, drafts=_DRAFTS):
        yield answer.tokens[1], answer.tokens[2]
