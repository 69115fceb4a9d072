"""Steps "faults", "sync" and "sleep": what a weight sync mends or brings, the engine answers as it must behind it."""

import itertools
from pathlib import Path
from typing import Any

import torch

from efficient_rollout.gpu_check.answers import ask, compare, questions
from efficient_rollout.gpu_check.policies import make_policy
from efficient_rollout.gpu_check.samples import EVERY_LENGTH, MOST_DRAFTS, answers_of, check_answers
from efficient_rollout.gpu_check.stand import Measured, Stand, drafting, require, runnable_schemes, worker_of
from efficient_rollout.gpu_check.weights import addresses_of, digests_of

_MESSAGE = "gpu-check lets this draft fail"
_GOOD_STEPS = 2
# Level 1 keeps weights in the CPU's memory, 2 discards them. Where there is memory, twice each, so that growth is seen.
_LEVELS = (1, 2)
_ALLOWED_GROWTH_BYTES = 32 << 20


def check_faults(stand: Stand) -> Measured:
    """Check that a drafter whose third step fails costs no token, and drafts again after the next weight sync.

    It runs without graphs: those are replayed, and call nothing.
    """
    policy = make_policy(stand.folder, "qwen3", stand.sizes)
    with stand.engine(policy, drafting(runnable_schemes()[0], MOST_DRAFTS)) as engine:
        ((asked, expected),) = before = answers_of(stand, engine, (1.0,))
        engine.collective_rpc("take_rollout_stats")
        worker = worker_of(engine)
        drafter = worker.self_drafter
        _let_fail(drafter.model)
        found = ask(engine, asked, stand.sizes.num_tokens, drafts=EVERY_LENGTH)
        measured = compare(stand, "a drafter that fails", asked, expected, found)
        (stats,) = engine.collective_rpc("take_rollout_stats")
        fault = worker.health.drafter_fault or "none"
        require(_MESSAGE in fault, "the drafter's fault", where="the worker", expected=_MESSAGE, found=fault)
        faults = stats["num_drafter_faults"]
        require(faults == 1, "faults in the statistics", where="the worker", expected=1, found=faults)

        del drafter.model.compute_logits
        _sync(engine, policy)
        fault = worker.health.drafter_fault
        require(fault is None, "fault after a weight sync", where="the worker", expected=None, found=fault)
        check_answers(stand, "after the weight sync", engine, before)
    return {"faults": faults, **measured}


def _let_fail(model: Any) -> None:
    """Let the object's own method fail; it stands before the class's, and is to be deleted there."""
    stock, calls = model.compute_logits, itertools.count()

    def compute_logits(hidden: torch.Tensor) -> torch.Tensor:
        if next(calls) == _GOOD_STEPS:
            raise RuntimeError(_MESSAGE)
        logits: torch.Tensor = stock(hidden)
        return logits

    model.compute_logits = compute_logits


def _sync(engine: Any, policy: Path) -> None:
    engine.collective_rpc("reload_weights", kwargs={"weights_path": str(policy)})


def check_sync(stand: Stand) -> Measured:
    """Check that new weights reach policy and drafter where they lie, as if the engine had started with them.

    On a GPU with graphs: they read what lies at the addresses they were captured with.
    """
    policy, other = (make_policy(stand.folder, name, stand.sizes) for name in ("qwen3", "qwen3-other"))
    scheme, asked = runnable_schemes()[0], questions(stand, 1.0)
    options = {"enforce_eager": not stand.is_gpu}
    with stand.engine(other, drafting(scheme, MOST_DRAFTS), **options) as engine:
        expected = answers_of(stand, engine, (1.0,))
        fresh = digests_of(worker_of(engine).self_drafter.packed.layers)
    with stand.engine(policy, drafting(scheme, MOST_DRAFTS), **options) as engine:
        worker = worker_of(engine)
        layers = worker.self_drafter.packed.layers
        ask(engine, asked, 2, drafts=EVERY_LENGTH)
        own, before = digests_of(layers), addresses_of(layers) | _parameters(worker)
        require(
            own != fresh, "packed bytes", where="before the sync", expected="the first policy's", found="the other's"
        )
        _sync(engine, other)
        moved = [
            name for name, address in (addresses_of(layers) | _parameters(worker)).items() if before[name] != address
        ]
        require(not moved, "tensors that moved", where="after the sync", expected="none", found=moved)
        found = digests_of(layers)
        wrong = [name for name in fresh if found.get(name) != fresh[name]]
        require(
            not wrong, "packed bytes", where="after the sync", expected="a fresh engine's", found=f"others in {wrong}"
        )
        measured = check_answers(stand, "after the sync", engine, expected)
    return {"equal_layers": len(fresh), "addresses": len(before), **measured}


def _parameters(worker: object) -> dict[str, int]:
    """Return where the policy's parameters lie."""
    model: torch.nn.Module = worker.model_runner.get_model()  # type: ignore[attr-defined]
    return {f"policy.{name}": parameter.data_ptr() for name, parameter in model.named_parameters()}


def check_sleep(stand: Stand) -> Measured:
    """Check that an engine that slept, and has its weights again, answers as before and holds no more memory.

    On a GPU with graphs. Elsewhere nothing is given back, and what is remembered of it is checked.
    """
    policy = make_policy(stand.folder, "qwen3", stand.sizes)
    options: dict[str, Any] = {"enforce_eager": not stand.is_gpu}
    if stand.is_gpu:
        options["enable_sleep_mode"] = True
    measured: Measured = {"tokens": 0, "ties": 0}
    free: list[int] = []
    with stand.engine(policy, drafting(runnable_schemes()[0], MOST_DRAFTS), **options) as engine:
        expected = answers_of(stand, engine, (1.0,))
        for level in _LEVELS * (2 if stand.is_gpu else 1):
            asleep, where = _sleep_and_wake(engine, stand, policy, level), f"after sleep level {level}"
            result = check_answers(stand, where, engine, expected)
            measured |= {key: measured[key] + result[key] for key in measured}
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
        _sync(engine, policy)
        fault = health.drafter_fault
        require(fault is None, "the drafter's fault", where="after the weight sync", expected=None, found=fault)
    return free
