"""Step "graphs": with captured CUDA graphs drafting changes no token either, and every batch of decoding has one.

Step "quick": the same of one shape of engine, before a weight sync and behind it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager, ModelCudaGraphManager

from efficient_rollout.gpu_check.answers import added
from efficient_rollout.gpu_check.policies import make_policy
from efficient_rollout.gpu_check.samples import (
    LOOKUPS,
    MOST_DRAFTS,
    answers_of,
    check_answers,
    check_drafting,
    check_perfect,
    plain_answers,
)
from efficient_rollout.gpu_check.stand import Measured, Stand, drafting, reload, require, runnable_schemes, worker_of


def check_graphs(stand: Stand) -> Measured:
    """Check that engines with graphs, stock and drafting ones, give the same tokens.

    A perfect drafter is believed, and graphs are replayed. Compiled code rounds otherwise than eager passes, so that
    stock has graphs here too.
    """
    policy, eager = make_policy(stand.folder, "qwen3", stand.sizes), not stand.is_gpu
    plain = plain_answers(stand, policy, eager=eager)
    measured: Measured = {"full_graphs": 0}

    def look_at(engine: Any) -> None:
        measured["full_graphs"] += _full_graphs(engine, stand)

    with _replays(stand) as replays:
        compared: Measured = {}
        for number, scheme in enumerate(runnable_schemes()[: stand.sizes.most_schemes]):
            lookup = LOOKUPS[number % 2]
            result = check_drafting(stand, policy, scheme, plain, lookup=lookup, eager=eager, look_at=look_at)
            compared = added(compared, result)
        if stand.is_gpu:  # elsewhere this is a part of the step "same-samples"
            measured["unquantized_accepted_first"] = check_perfect(stand, policy, plain, eager=eager)
    return measured | compared | replays


def check_quick(stand: Stand) -> Measured:
    """Check two engines alone, stock's and one that drafts: each has one policy, and then another's weights."""
    policy, other = (make_policy(stand.folder, name, stand.sizes) for name in ("qwen3", "qwen3-other"))
    scheme, options = runnable_schemes()[0], {"enforce_eager": not stand.is_gpu}
    with stand.engine(policy, **options) as engine:
        before = answers_of(stand, engine)
        reload(engine, other)
        behind = answers_of(stand, engine)
    with _replays(stand) as replays, stand.engine(policy, drafting(scheme, MOST_DRAFTS), **options) as engine:
        full_graphs = _full_graphs(engine, stand)
        first = check_answers(stand, f"at the start, {scheme}", engine, before)
        reload(engine, other)
        second = check_answers(stand, f"behind a weight sync, {scheme}", engine, behind)
    return added(added({"scheme": scheme, "full_graphs": full_graphs}, first), second) | replays


def _full_graphs(engine: Any, stand: Stand) -> int:
    return check_dispatch(worker_of(engine).model_runner.cudagraph_manager, stand) if stand.is_gpu else 0


def check_dispatch(manager: Any, stand: Stand) -> int:
    """Check that every batch of decoding within the limit of captured tokens has a full graph.

    Returns:
        Batches that were asked for.
    """
    limit = manager.compilation_config.max_cudagraph_capture_size
    batches = [
        (num_reqs, query_len)
        for query_len in range(1, MOST_DRAFTS + 2)
        for num_reqs in range(1, stand.sizes.max_num_seqs + 1)
        if num_reqs * query_len <= limit
    ]
    for num_reqs, query_len in batches:
        mode = manager.dispatch(num_reqs, num_reqs * query_len, query_len, 0, max_query_len=query_len).cg_mode
        where = f"{num_reqs} requests with {query_len - 1} drafts"
        require(mode == CUDAGraphMode.FULL, "graph of a batch", where, "FULL", mode.name)
    return len(batches)


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
