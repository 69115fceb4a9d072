"""Packed layers on a CPU, and attention, on this package's own kernels.

Int4 and int8 weights are multiplied by int8 activations. Float32, unquantized, is for the policy itself: verifying a
few positions costs hardly more than one, on AVX2. oneDNN, which vLLM uses, takes half as long again for 5 rows as for 1
on CPUs without AVX512. vLLM's attention over its paged cache takes two to three times as long for 5 positions as for 1;
this one reads the cache once for all.
"""

import ctypes
from abc import abstractmethod

import torch

from efficient_rollout.drafter.cpu.native.library import address, load_library
from efficient_rollout.drafter.scheme import PackedLinear

_PANEL = 16  # outputs whose float32 weights lie side by side
# The same of quantized weights, and inputs of an output that do.
_INT8_BLOCK, _INT8_INPUTS = 16, 4
_INT4_BLOCK = 8


class _NativeLinear(PackedLinear):
    """Converts rows and bias, which the kernel adds, and owns the memory of a product."""

    _values: torch.Tensor
    _scales: torch.Tensor

    def requantize(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Take new values in place; see `PackedLinear.requantize`."""
        super().requantize(weight, bias)
        self._float32_bias = None if self.bias is None else self.bias.float()

    def _pack(self, weight: torch.Tensor) -> None:
        if self._pack_float32(weight.float().contiguous()):
            raise MemoryError("no memory to quantize a layer")

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.float().contiguous()
        output = torch.empty(rows.shape[0], self.out_features, dtype=torch.float32)
        scratch = torch.empty(rows.shape[0] * self._scratch_bytes_per_row, dtype=torch.int8)
        self._multiply_float32(rows, output, scratch)
        return output.to(self.dtype)

    @property
    def num_bytes(self) -> int:
        return self._values.nbytes + self._scales.nbytes + self._bias_bytes()

    @property
    @abstractmethod
    def _scratch_bytes_per_row(self) -> int: ...

    @abstractmethod
    def _pack_float32(self, weight: torch.Tensor) -> int:
        """Quantize and pack [out_features, in_features]. Return 0, or 1 where memory ran out."""

    @abstractmethod
    def _multiply_float32(self, rows: torch.Tensor, output: torch.Tensor, scratch: torch.Tensor) -> None: ...


class Int8NativeLinear(_NativeLinear):
    """Multiplies int8 weights by int8 activations.

    It holds packed bytes and a float32 scale per output channel; activations get a scale per row.

    Weights are rounded to the nearest of 255 values. Products are summed as integers: exactly.

    Args:
        weight: [out_features, in_features]; multiples of 16.
        bias: [out_features] or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._values = torch.empty(weight.numel(), dtype=torch.int8)
        self._scales = torch.empty(weight.shape[0], dtype=torch.float32)
        super().__init__(weight, bias)

    def _pack_float32(self, weight: torch.Tensor) -> int:
        failed: int = load_library().er_q8_pack(
            address(weight), *weight.shape, address(self._values), address(self._scales)
        )
        return failed

    @property
    def _scratch_bytes_per_row(self) -> int:
        return self.in_features + 8

    def _multiply_float32(self, rows: torch.Tensor, output: torch.Tensor, scratch: torch.Tensor) -> None:
        load_library().er_q8_multiply(
            address(rows), rows.shape[0], address(self._values), address(self._scales),
            self.out_features, self.in_features,
            address(self._float32_bias), address(output), address(scratch),
        )  # fmt: skip

    def dequantize(self) -> torch.Tensor:
        blocks = self._values.view(-1, self.in_features // _INT8_INPUTS, _INT8_BLOCK, _INT8_INPUTS)
        values = blocks.transpose(1, 2).reshape(self.out_features, self.in_features)
        return values.float() * self._scales.unsqueeze(1)


class Int4NativeLinear(_NativeLinear):
    """Multiplies int4 weights by int8 activations: about half the bytes of int8.

    It holds packed nibbles, and a scale and an offset per group in bfloat16. Activations get a scale per row and group.

    weight ~ (values - 8) * scale + offset, with the nearest of 16 values. Products are summed in float32, in an order
    that does not depend on the number of rows.

    Args:
        weight: [out_features, in_features]; multiples of 8 and of `group_size`.
        bias: [out_features] or None.
        group_size: Input channels that share a scale and an offset; a multiple of 32.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, group_size: int) -> None:
        self.group_size = group_size
        outputs, inputs = weight.shape
        self._values = torch.empty(outputs * inputs // 2, dtype=torch.uint8)
        # [outputs / 8, groups, 2, 8]: scales, then offsets.
        self._scales = torch.empty(outputs // _INT4_BLOCK, inputs // group_size, 2, _INT4_BLOCK, dtype=torch.bfloat16)
        super().__init__(weight, bias)

    def _pack_float32(self, weight: torch.Tensor) -> int:
        failed: int = load_library().er_q4_pack(
            address(weight), *weight.shape, self.group_size, address(self._values), address(self._scales)
        )
        return failed

    @property
    def _scratch_bytes_per_row(self) -> int:
        return self.in_features + 8 * self.in_features // self.group_size

    def _multiply_float32(self, rows: torch.Tensor, output: torch.Tensor, scratch: torch.Tensor) -> None:
        load_library().er_q4_multiply(
            address(rows), rows.shape[0], address(self._values), address(self._scales),
            self.out_features, self.in_features, self.group_size,
            address(self._float32_bias), address(output), address(scratch),
        )  # fmt: skip

    def dequantize(self) -> torch.Tensor:
        blocks, eights = self.out_features // _INT4_BLOCK, self.in_features // 8
        halves = self._values.view(blocks, eights, _INT4_BLOCK, 1, 4)
        values = torch.cat([halves & 15, halves >> 4], dim=3).transpose(1, 2).reshape(-1, self.in_features)
        scales, offsets = (
            self._scales[:, :, i].transpose(1, 2).reshape(self.out_features, -1).float() for i in range(2)
        )
        return (values.float() - 8) * scales.repeat_interleave(self.group_size, 1) + offsets.repeat_interleave(
            self.group_size, 1
        )


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
