"""Step "quick": one shape of engine, with graphs: the tokens of stock vLLM, before a weight sync and behind it."""

from typing import Any

from efficient_rollout.gpu_check.answers import Answer, ask, compare, drafted_and_accepted, questions
from efficient_rollout.gpu_check.graphs import Replays, check_dispatch
from efficient_rollout.gpu_check.policies import make_policy
from efficient_rollout.gpu_check.samples import EVERY_LENGTH, MOST_DRAFTS, TEMPERATURES
from efficient_rollout.gpu_check.stand import Measured, Stand, drafting, require, runnable_schemes, worker_of


def check_quick(stand: Stand) -> Measured:
    """Check two engines alone, stock's and one that drafts.

    Each has one policy, and then another's weights.
    """
    policy, other = (make_policy(stand.folder, name, stand.sizes) for name in ("qwen3", "qwen3-other"))
    scheme, options = runnable_schemes()[0], {"enforce_eager": not stand.is_gpu}
    with stand.engine(policy, **options) as engine:
        expected = [_answers(stand, engine, tells_logprobs=True)]
        engine.collective_rpc("reload_weights", kwargs={"weights_path": str(other)})
        expected.append(_answers(stand, engine, tells_logprobs=True))
    measured: Measured = {"scheme": scheme, "tokens": 0, "ties": 0}
    with Replays() as replays, stand.engine(policy, drafting(scheme, MOST_DRAFTS), **options) as engine:
        if stand.is_gpu:
            measured["full_graphs"] = check_dispatch(worker_of(engine).model_runner.cudagraph_manager, stand)
        drafted_and_accepted(engine)
        for where, answers in zip(("at the start", "behind a weight sync"), expected, strict=True):
            if where != "at the start":
                engine.collective_rpc("reload_weights", kwargs={"weights_path": str(other)})
            for temperature, theirs, ours in zip(TEMPERATURES, answers, _answers(stand, engine), strict=True):
                result = compare(stand, f"{where}, {scheme}", questions(stand, temperature), theirs, ours)
                measured |= {key: measured[key] + result[key] for key in ("tokens", "ties")}
            drafted, accepted = drafted_and_accepted(engine)
            require(sum(accepted) > 0, "accepted drafts", where=where, expected="some", found=drafted)
    if stand.is_gpu:
        for kind, count in replays.counts.items():
            require(count > 0, kind, where="the engine with graphs", expected="some", found=count)
    return measured | replays.counts


def _answers(stand: Stand, engine: Any, *, tells_logprobs: bool = False) -> list[list[Answer]]:
    return [
        ask(
            engine,
            questions(stand, temperature),
            stand.sizes.num_tokens,
            drafts=EVERY_LENGTH,
            tells_logprobs=tells_logprobs,
        )
        for temperature in TEMPERATURES
    ]
