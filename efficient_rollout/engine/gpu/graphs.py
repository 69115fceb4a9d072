"""Full CUDA graphs for every number of drafts and of requests, in the graph manager of vLLM's V2 model runner.

A graph of the policy's decode has one query length: a tick with k drafts needs graphs of k + 1 tokens per request.
Stock captures one query length, or those that the speculative config's `num_speculative_tokens_per_batch_size` names,
and offers a batch only the graphs of the next captured number of tokens, whatever their query length. Naming every k
there is no way out: it names one k per batch size, so no more than `max_num_seqs` of them; many batches would still
miss; and in 0.31 a manager of one query length, as the draft chain has, then divides by zero.

Here plain decoding keeps stock's grid of requests, so that a tick without drafts costs what it costs in stock. Ticks
that verify drafts, and draft steps, have a sparse grid: two sizes an octave, whose padding costs little where a pass is
bound by memory. Every batch sees the smallest graph of its own length that holds it.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vllm.config.compilation import CUDAGraphMode

from efficient_rollout.errors import UnsupportedVersionError

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager

# What `complete` reads and rewrites.
MANAGER_ATTRIBUTES = (
    "_candidates", "_capture_descs", "_graphs_captured", "_maybe_ubatch_twin", "compilation_config", "cudagraph_mode",
    "decode_query_len", "graphs", "lora_capture_cases", "max_num_reqs", "varlen_decode",
)  # fmt: skip
# The least of vLLM's default limits on a captured batch, in tokens: that of all GPUs before Blackwell.
DEFAULT_LIMIT = 512
# Sizes of a sparse grid double up to there, and have one more between each two behind.
_SINGLE_STEPS = 16


def capture_limit(max_draft_tokens: int, max_num_seqs: int) -> int | None:
    """Return the `max_cudagraph_capture_size` with which every batch that verifies drafts can have a graph.

    A batch beyond the limit runs without one. vLLM's default is enough to hide a large policy's launches; a small
    policy with many requests gains from a higher one, for memory and seconds of capture.

    Returns:
        Tokens, on the grid of sizes that vLLM captures up to its limit; None where its default is enough.
    """
    tokens = (max_draft_tokens + 1) * max_num_seqs
    # From 256 tokens on the grid has steps of 16; between two of its points vLLM would cut the limit to the lower one.
    return -(-tokens // 16) * 16 if tokens > DEFAULT_LIMIT else None


def complete(manager: "CudaGraphManager", *, is_chain: bool = False) -> None:
    """Give a graph manager a full graph for every query length up to its own, and every batch the smallest that fits.

    It is to be called once stock has made the manager (`initialize_kv_cache`, which also makes one to measure graphs'
    memory) and before it captures; a second call changes nothing. A draft chain has graphs of its longest steps and of
    plain ones. Piecewise graphs are those of an engine without speculation, and sparse beyond vLLM's default limit. A
    manager without full graphs for decoding alone stays as it is, and one whose graphs take any mix of query lengths
    (`varlen_decode`).

    Raises:
        UnsupportedVersionError: The manager is not the one this was written for, or has captured already.
    """
    missing = [name for name in MANAGER_ATTRIBUTES if not hasattr(manager, name)]
    if missing:
        raise UnsupportedVersionError(
            f"vLLM's {type(manager).__name__} has no {', '.join(missing)}: its graphs cannot be completed, and "
            "drafting would run without them. Install a tested version of vLLM"
        )
    mode = manager.cudagraph_mode
    is_separate = mode.separate_routine() and mode.decode_mode() == CUDAGraphMode.FULL
    if not is_separate or manager.varlen_decode or not manager.compilation_config.cudagraph_capture_sizes:
        return
    graphs = sorted(_decode_graphs(manager, is_chain), key=lambda graph: graph.num_tokens, reverse=True)
    if manager._capture_descs.get(CUDAGraphMode.FULL) == graphs:
        return
    if manager._graphs_captured or manager.graphs:
        raise UnsupportedVersionError(
            f"vLLM's {type(manager).__name__} captured its graphs before they were completed; the installed version "
            "starts in another order than those that were tested"
        )
    # Largest first: stock sizes the buffer of a graph's outputs by the first one it captures.
    manager._capture_descs[CUDAGraphMode.FULL] = graphs
    kept = [graph for graph in manager._capture_descs.get(CUDAGraphMode.PIECEWISE, ()) if _is_kept(graph, manager)]
    if kept:
        manager._capture_descs[CUDAGraphMode.PIECEWISE] = kept
    manager._candidates = _candidates([*graphs, *kept], manager.lora_capture_cases)


def request_counts(limit: int, *, is_dense: bool = False) -> list[int]:
    """List the numbers of requests up to a limit, itself among them, that have a graph; `is_dense` as in stock."""
    if is_dense:
        grid = {1, 2, 4, *range(8, min(limit, 255) + 1, 8), *range(256, limit + 1, 16)}
    else:
        octaves = [1 << power for power in range(limit.bit_length())]
        grid = {*octaves, *(3 * octave // 2 for octave in octaves if octave >= _SINGLE_STEPS)}
    return sorted(count for count in {*grid, limit} if 0 < count <= limit)


def _is_kept(graph: "BatchExecutionDescriptor", manager: Any) -> bool:
    tokens, limit = graph.num_tokens, manager.compilation_config.max_cudagraph_capture_size
    return tokens in request_counts(min(limit, DEFAULT_LIMIT), is_dense=True) or tokens in request_counts(limit)


def _decode_graphs(manager: Any, is_chain: bool) -> Iterator["BatchExecutionDescriptor"]:
    # The runner's own module, which a process that only writes an engine's configuration does not load.
    from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

    # Beyond it, attention backends prepare for batches that are not in a graph.
    max_tokens = manager.compilation_config.max_cudagraph_capture_size
    longest = manager.decode_query_len
    for query_len in sorted({1, longest}) if is_chain else range(1, longest + 1):
        most_reqs = min(manager.max_num_reqs, max_tokens // query_len)
        for num_reqs in request_counts(most_reqs, is_dense=query_len == 1 and not is_chain):
            for num_active_loras in manager.lora_capture_cases:
                graph = BatchExecutionDescriptor(
                    cg_mode=CUDAGraphMode.FULL,
                    num_tokens=num_reqs * query_len,
                    num_reqs=num_reqs,
                    uniform_token_count=query_len,
                    num_active_loras=num_active_loras,
                )
                yield graph
                in_microbatches = manager._maybe_ubatch_twin(graph)
                if in_microbatches is not None:
                    yield in_microbatches


def _candidates(
    graphs: Sequence["BatchExecutionDescriptor"], lora_cases: Iterable[int]
) -> dict[tuple[int, int], list["BatchExecutionDescriptor"]]:
    """Return the graphs a batch may run in, by its tokens and active LoRA adapters: full ones first."""
    made = {}
    for case in lora_cases:
        pending = [graph for graph in graphs if graph.num_active_loras == case]
        pending.sort(key=lambda graph: graph.num_tokens)
        # From the largest batch down, every graph takes the place of the next larger one of its kind.
        smallest: dict[tuple[Any, ...], BatchExecutionDescriptor] = {}
        for tokens in range(pending[-1].num_tokens if pending else -1, -1, -1):
            while pending and pending[-1].num_tokens >= tokens:
                graph = pending.pop()
                smallest[graph.cg_mode, graph.uniform_token_count, graph.num_ubatches] = graph
            made[tokens, case] = sorted(smallest.values(), key=lambda graph: graph.cg_mode != CUDAGraphMode.FULL)
    return made
