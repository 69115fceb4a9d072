"""Step "graphs": with captured CUDA graphs drafting changes no token either, and every batch of decoding has one.

Step "quick": the same of one shape of engine, before a weight sync and behind it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager, ModelCudaGraphManager

from efficient_rollout.gpu_check.answers import added
from efficient_rollout.gpu_check.policies import make_policy
from efficient_rollout.gpu_check.samples import (
    LOOKUPS,
    MOST_DRAFTS,
    answers_of,
    check_answers,
    check_drafting,
    check_full_graphs,
    check_perfect,
    plain_answers,
)
from efficient_rollout.gpu_check.stand import Measured, Stand, drafting, reload, require, runnable_schemes


def check_graphs(stand: Stand) -> Measured:
    """Check that engines with graphs, stock and drafting ones, give the same tokens.

    A perfect drafter is believed, and graphs are replayed. Compiled code rounds otherwise than eager passes, so that
    stock has graphs here too.
    """
    policy, eager = make_policy(stand.folder, "qwen3", stand.sizes), not stand.is_gpu
    plain = plain_answers(stand, policy, eager=eager)
    measured: Measured = {}
    with _replays(stand) as replays:
        for number, scheme in enumerate(runnable_schemes()[: stand.sizes.most_schemes]):
            lookup = LOOKUPS[number % 2]
            measured = added(measured, check_drafting(stand, policy, scheme, plain, lookup=lookup, eager=eager))
        if stand.is_gpu:  # elsewhere this is a part of the step "same-samples"
            measured["unquantized_accepted_first"] = check_perfect(stand, policy, plain, eager=eager)
    return measured | replays


def check_quick(stand: Stand) -> Measured:
    """Check two engines alone, stock's and one that drafts: each has one policy, and then another's weights."""
    policy, other = (make_policy(stand.folder, name, stand.sizes) for name in ("qwen3", "qwen3-other"))
    scheme, options = runnable_schemes()[0], {"enforce_eager": not stand.is_gpu}
    with stand.engine(policy, **options) as engine:
        before = answers_of(stand, engine)
        reload(engine, other)
        behind = answers_of(stand, engine)
    with _replays(stand) as replays, stand.engine(policy, drafting(scheme, MOST_DRAFTS), **options) as engine:
        full_graphs = check_full_graphs(stand, engine)
        first = check_answers(stand, f"at the start, {scheme}", engine, before)
        reload(engine, other)
        second = check_answers(stand, f"behind a weight sync, {scheme}", engine, behind)
    return {"scheme": scheme, "full_graphs": full_graphs} | added(added({}, first), second) | replays


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
