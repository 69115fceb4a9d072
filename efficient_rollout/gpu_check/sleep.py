"""Step "sleep": an engine that slept, and has its weights again, answers as before and holds no more memory."""

from pathlib import Path
from typing import Any

from efficient_rollout.gpu_check.answers import ask, compare, drafted_and_accepted, questions
from efficient_rollout.gpu_check.policies import make_policy
from efficient_rollout.gpu_check.samples import EVERY_LENGTH, MOST_DRAFTS
from efficient_rollout.gpu_check.stand import Measured, Stand, drafting, require, runnable_schemes, worker_of

# Level 1 keeps weights in the CPU's memory, 2 discards them. Where there is memory, twice each, so that growth is seen.
_LEVELS = (1, 2)
_ALLOWED_GROWTH_BYTES = 32 << 20


def check_sleep(stand: Stand) -> Measured:
    """Check with graphs on a GPU.

    Elsewhere nothing is given back, and what is remembered of it is checked.
    """
    policy, asked = make_policy(stand.folder, "qwen3", stand.sizes), questions(stand, 1.0)
    options: dict[str, Any] = {"enforce_eager": not stand.is_gpu}
    if stand.is_gpu:
        options["enable_sleep_mode"] = True
    measured: Measured = {"tokens": 0, "ties": 0}
    free: list[int] = []
    with stand.engine(policy, drafting(runnable_schemes()[0], MOST_DRAFTS), **options) as engine:
        expected = ask(engine, asked, stand.sizes.num_tokens, drafts=EVERY_LENGTH, tells_logprobs=True)
        for level in _LEVELS * (2 if stand.is_gpu else 1):
            asleep = _sleep_and_wake(engine, stand, policy, level)
            drafted_and_accepted(engine)
            found = ask(engine, asked, stand.sizes.num_tokens, drafts=EVERY_LENGTH)
            result = compare(stand, f"after sleep level {level}", asked, expected, found)
            measured |= {key: measured[key] + result[key] for key in result}
            _, accepted = drafted_and_accepted(engine)
            where = f"after sleep level {level}"
            require(sum(accepted) > 0, "accepted drafts", where=where, expected="some", found=accepted)
            awake = stand.free_bytes()
            if awake is not None and asleep is not None:
                free.append(awake)
                require(asleep > awake, "free memory in the sleep", where=where, expected=f"over {awake}", found=asleep)
    if free:
        growth = free[1] - free[-1]  # both after level 2
        require(
            growth <= _ALLOWED_GROWTH_BYTES,
            "growth of memory over two sleeps",
            where="the GPU",
            expected=f"{_ALLOWED_GROWTH_BYTES} bytes at most",
            found=growth,
        )
        measured["growth_bytes"] = growth
    return measured


def _sleep_and_wake(engine: Any, stand: Stand, policy: Path, level: int) -> int | None:
    """Send the engine to sleep and wake it; return the free bytes in the sleep."""
    health = worker_of(engine).health
    engine.sleep(level=level)
    free, fault = stand.free_bytes(), health.drafter_fault
    loses = level > 1
    require(
        (fault is not None) == loses,
        "the drafter's fault in its sleep",
        where=f"level {level}",
        expected="that its weights are lost" if loses else None,
        found=fault,
    )
    engine.wake_up()
    if loses:
        engine.collective_rpc("reload_weights", kwargs={"weights_path": str(policy)})
        fault = health.drafter_fault
        require(fault is None, "the drafter's fault", where="after the weight sync", expected=None, found=fault)
    return free
