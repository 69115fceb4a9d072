"""Float32, unquantized, for the policy itself: verifying a few positions costs hardly more than one, on AVX2.

oneDNN, which vLLM uses, takes half as long again for 5 rows as for 1 on CPUs without AVX512. vLLM's attention over its
paged cache takes two to three times as long for 5 positions as for 1; this one reads the cache once for all.
"""

import ctypes

import torch

from efficient_rollout.drafter.cpu.native.library import address, load_library
from efficient_rollout.drafter.packed_linear import PackedLinear

_PANEL = 16  # outputs whose weights lie side by side


def takes(weight: torch.Tensor) -> bool:
    """Tell whether this layer can hold such a weight."""
    return weight.dtype == torch.float32 and weight.ndim == 2 and weight.shape[0] % _PANEL == 0


class Float32NativeLinear(PackedLinear):
    """Holds the weight as it is, laid out in panels.

    Each output is one sum in one order, whatever the number of rows: a position's result is the same, bit for bit,
    whether it is decoded alone or verified beside drafts.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._panels = torch.empty(weight.numel(), dtype=torch.float32)
        super().__init__(weight, bias)

    def _pack(self, weight: torch.Tensor) -> None:
        weight = weight.contiguous()
        load_library().er_f32_pack(address(weight), *weight.shape, address(self._panels))

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.contiguous()
        output = torch.empty(rows.shape[0], self.out_features, dtype=torch.float32)
        load_library().er_f32_multiply(
            address(rows), rows.shape[0], address(self._panels), self.out_features, self.in_features,
            address(self.bias), address(output),
        )  # fmt: skip
        return output

    @property
    def num_bytes(self) -> int:
        return self._panels.nbytes + self._bias_bytes()

    def dequantize(self) -> torch.Tensor:
        panels = self._panels.view(-1, self.in_features, _PANEL)
        return panels.transpose(1, 2).reshape(self.out_features, self.in_features)


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
