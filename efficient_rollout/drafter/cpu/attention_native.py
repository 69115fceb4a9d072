"""Float32 attention over vLLM's paged CPU cache, for few positions of each sequence at a time, on AVX2.

vLLM's own kernel takes two to three times as long for 5 positions as for 1; this one reads the cache once for all.
"""

import ctypes

import torch

from efficient_rollout.drafter.cpu.native.library import load_library

_POINTERS = ("query", "output", "cache", "query_starts", "lengths", "blocks")
_SIZES = (
    "query_stride", "output_stride", "blocks_stride", "requests", "heads", "kv_heads", "head_dim", "block_size",
)  # fmt: skip


class _Arguments(ctypes.Structure):
    """Mirrors `Attention` of float32.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_long) for name in _SIZES),
        ("scale", ctypes.c_float),
    )


def attend(
    query: torch.Tensor,
    cache: torch.Tensor,
    output: torch.Tensor,
    query_starts: torch.Tensor,
    lengths: torch.Tensor,
    blocks: torch.Tensor,
    scale: float,
) -> None:
    """Attend causally with every query.

    A position's result is the same, bit for bit, however many come with it.

    Args:
        query: float32 [tokens, heads, head_dim], heads contiguous; head_dim a multiple of 16.
        cache: float32 [blocks, kv_heads, 2 * block_size, head_dim], contiguous: keys transposed to
            [head_dim, block_size], then values; block_size a multiple of 16.
        output: float32 as `query`; written.
        query_starts: int32 [requests + 1], first query of each request.
        lengths: int32 [requests], tokens the last query of each request attends to, itself included.
        blocks: int32 [requests, ...], each request's blocks, in order.
        scale: Of the scores.

    Raises:
        MemoryError: There is none for the scores.
    """
    _, kv_heads, twice_block_size, head_dim = cache.shape
    tensors = (query, output, cache, query_starts, lengths, blocks)
    sizes = (
        query.stride(0), output.stride(0), blocks.stride(0), lengths.shape[0], query.shape[1], kv_heads, head_dim,
        twice_block_size // 2,
    )  # fmt: skip
    arguments = _Arguments(*(tensor.data_ptr() for tensor in tensors), *sizes, scale)
    if load_library().er_f32_attend(ctypes.byref(arguments)):
        raise MemoryError("no memory for attention scores")
