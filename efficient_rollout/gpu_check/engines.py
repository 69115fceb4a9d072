"""Steps with engines that have captured graphs, whose drafter fails, whose weights change, and that sleep.

Step "graphs": with captured CUDA graphs drafting changes no token either, and every batch of decoding has one.

Step "quick": the same of one shape of engine, before a weight sync and behind it.

Steps "faults", "sync" and "sleep": what a weight sync mends or brings, the engine answers as it must behind it.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager, ModelCudaGraphManager

from efficient_rollout.gpu_check import samples
from efficient_rollout.gpu_check.stand import Measured, Stand, drafting, reload, require, runnable_schemes, worker_of
from efficient_rollout.gpu_check.weights import addresses_of, digests_of, make_policy

_MESSAGE = "gpu-check lets this draft fail"
_GOOD_STEPS = 2
# Level 1 keeps weights in the CPU's memory, 2 discards them. Where there is memory, twice each, so that growth is seen.
_LEVELS = (1, 2)
_ALLOWED_GROWTH_BYTES = 32 << 20


def check_graphs(stand: Stand) -> Measured:
    """Check that engines with graphs, stock and drafting ones, give the same tokens.

    A perfect drafter is believed, and graphs are replayed. Compiled code rounds otherwise than eager passes, so that
    stock has graphs here too.
    """
    policy, eager = make_policy(stand.folder, "qwen3", stand.sizes), not stand.is_gpu
    plain = samples.plain_answers(stand, policy, eager=eager)
    measured: Measured = {}
    with _replays(stand) as replays:
        for number, scheme in enumerate(runnable_schemes()[: stand.sizes.most_schemes]):
            lookup = samples.LOOKUPS[number % 2]
            measured = samples.added(
                measured, samples.check_drafting(stand, policy, scheme, plain, lookup=lookup, eager=eager)
            )
        if stand.is_gpu:  # elsewhere this is a part of the step "same-samples"
            measured["unquantized_accepted_first"] = samples.check_perfect(stand, policy, plain, eager=eager)
    return measured | replays


def check_quick(stand: Stand) -> Measured:
    """Check two engines alone, stock's and one that drafts: each has one policy, and then another's weights."""
    policy, other = (make_policy(stand.folder, name, stand.sizes) for name in ("qwen3", "qwen3-other"))
    scheme, options = runnable_schemes()[0], {"enforce_eager": not stand.is_gpu}
    with stand.engine(policy, **options) as engine:
        before = samples.answers_of(stand, engine)
        reload(engine, other)
        behind = samples.answers_of(stand, engine)
    with _replays(stand) as replays, stand.engine(policy, drafting(scheme, samples.MOST_DRAFTS), **options) as engine:
        full_graphs = samples.check_full_graphs(stand, engine)
        first = samples.check_answers(stand, f"at the start, {scheme}", engine, before)
        reload(engine, other)
        second = samples.check_answers(stand, f"behind a weight sync, {scheme}", engine, behind)
    return {"scheme": scheme, "full_graphs": full_graphs} | samples.added(samples.added({}, first), second) | replays


@contextmanager
def _replays(stand: Stand) -> Iterator[dict[str, int]]:
    """Count full graphs that are replayed meanwhile: the policy's, and those of draft steps.

    Raises:
        CheckFailed: On a GPU there was none of a kind.
    """
    counts = {"policy_replays": 0, "draft_replays": 0}
    stock = CudaGraphManager.run_fullgraph

    def run_fullgraph(manager: Any, desc: Any) -> Any:
        counts["policy_replays" if isinstance(manager, ModelCudaGraphManager) else "draft_replays"] += 1
        return stock(manager, desc)

    CudaGraphManager.run_fullgraph = run_fullgraph
    try:
        yield counts
    finally:
        CudaGraphManager.run_fullgraph = stock
    for kind, count in counts.items() if stand.is_gpu else ():
        require(count > 0, kind, "engines with graphs", "some", count)


def check_faults(stand: Stand) -> Measured:
    """Check that a drafter whose third step fails costs no token, and drafts again after the next weight sync.

    It runs without graphs: those are replayed, and call nothing.
    """
    policy = make_policy(stand.folder, "qwen3", stand.sizes)
    with stand.engine(policy, drafting(runnable_schemes()[0], samples.MOST_DRAFTS)) as engine:
        asked, expected = before = samples.answers_of(stand, engine, (1.0,))
        engine.collective_rpc("take_rollout_stats")
        worker = worker_of(engine)
        drafter = worker.self_drafter
        _let_fail(drafter.model)
        found = samples.ask(engine, asked, stand.sizes.num_tokens, drafts=samples.EVERY_LENGTH)
        measured = samples.compare(stand, "a drafter that fails", asked, expected, found)
        (stats,) = engine.collective_rpc("take_rollout_stats")
        fault, faults = worker.health.drafter_fault or "none", stats["num_drafter_faults"]
        require(_MESSAGE in fault, "the drafter's fault", "the worker", _MESSAGE, fault)
        require(faults == 1, "faults in the statistics", "the worker", 1, faults)

        del drafter.model.compute_logits
        _mend(engine, policy)
        samples.check_answers(stand, "after the weight sync", engine, before)
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


def _mend(engine: Any, policy: Path) -> None:
    """Sync weights, which mends the drafter."""
    reload(engine, policy)
    fault = worker_of(engine).health.drafter_fault
    require(fault is None, "the drafter's fault", "after the weight sync", None, fault)


def check_sync(stand: Stand) -> Measured:
    """Check that new weights reach policy and drafter where they lie, as if the engine had started with them.

    On a GPU with graphs: they read what lies at the addresses they were captured with.
    """
    policy, other = (make_policy(stand.folder, name, stand.sizes) for name in ("qwen3", "qwen3-other"))
    settings, options = drafting(runnable_schemes()[0], samples.MOST_DRAFTS), {"enforce_eager": not stand.is_gpu}
    with stand.engine(other, settings, **options) as engine:
        expected = samples.answers_of(stand, engine, (1.0,))
        fresh = digests_of(worker_of(engine).self_drafter.packed.layers)
    with stand.engine(policy, settings, **options) as engine:
        layers = worker_of(engine).self_drafter.packed.layers
        samples.ask(engine, samples.questions(stand, (1.0,)), 2, drafts=samples.EVERY_LENGTH)
        own, before = digests_of(layers), _addresses(engine)
        require(own != fresh, "packed bytes", "before the sync", "the first policy's", "the other's")
        reload(engine, other)
        moved = [name for name, address in _addresses(engine).items() if before[name] != address]
        require(not moved, "tensors that moved", "after the sync", "none", moved)
        found = digests_of(layers)
        wrong = [name for name in fresh if found.get(name) != fresh[name]]
        require(not wrong, "packed bytes", "after the sync", "a fresh engine's", f"others in {wrong}")
        measured = samples.check_answers(stand, "after the sync", engine, expected)
    return {"equal_layers": len(fresh), "addresses": len(before), **measured}


def _addresses(engine: Any) -> dict[str, int]:
    """Return where the drafter's tensors and the policy's parameters lie."""
    worker = worker_of(engine)
    parameters = worker.model_runner.get_model().named_parameters()
    ours = addresses_of(worker.self_drafter.packed.layers)
    return ours | {f"policy.{name}": parameter.data_ptr() for name, parameter in parameters}


def check_sleep(stand: Stand) -> Measured:
    """Check that an engine that slept, and has its weights again, answers as before and holds no more memory.

    On a GPU with graphs. Elsewhere nothing is given back, and what is remembered of it is checked.
    """
    policy = make_policy(stand.folder, "qwen3", stand.sizes)
    options: dict[str, Any] = {}
    if stand.is_gpu:
        # A cache far larger than the growth that is allowed: one that is not given back is seen.
        size = 8 * _ALLOWED_GROWTH_BYTES
        options = {"enable_sleep_mode": True, "enforce_eager": False, "kv_cache_memory_bytes": size}
    measured: Measured = {}
    free: list[int] = []
    with stand.engine(policy, drafting(runnable_schemes()[0], samples.MOST_DRAFTS), **options) as engine:
        expected = samples.answers_of(stand, engine, (1.0,))
        for level in _LEVELS * (2 if stand.is_gpu else 1):
            asleep, where = _sleep_and_wake(engine, stand, policy, level), f"after sleep level {level}"
            measured = samples.added(measured, samples.check_answers(stand, where, engine, expected))
            awake = stand.free_bytes()
            if awake is not None and asleep is not None:
                free.append(awake)
                require(asleep > awake, "free memory in the sleep", where, f"over {awake}", asleep)
    if free:
        measured["growth_bytes"] = growth = free[1] - free[-1]  # both after level 2
        most = f"{_ALLOWED_GROWTH_BYTES} bytes at most"
        require(growth <= _ALLOWED_GROWTH_BYTES, "growth of memory over two sleeps", "the GPU", most, growth)
    return measured


def _sleep_and_wake(engine: Any, stand: Stand, policy: Path, level: int) -> int | None:
    """Send the engine to sleep and wake it; return the free bytes in the sleep."""
    engine.sleep(level=level)
    free, fault = stand.free_bytes(), worker_of(engine).health.drafter_fault
    loses = level > 1
    expected = "that its weights are lost" if loses else None
    require((fault is not None) == loses, "the drafter's fault in its sleep", f"level {level}", expected, fault)
    engine.wake_up()
    if loses:
        _mend(engine, policy)
    return free
