"""Packed layers on a CPU, and attention, on this package's own kernels.

Int4 and int8 weights are multiplied by int8 activations. Float32, unquantized, is for the policy itself: verifying a
few positions costs hardly more than one, on AVX2. oneDNN, which vLLM uses, takes half as long again for 5 rows as for 1
on CPUs without AVX512. vLLM's attention over its paged cache takes two to three times as long for 5 positions as for 1;
this one reads the cache once for all.
"""

import ctypes

import torch

from efficient_rollout.drafter.cpu.native.library import address, load_library
from efficient_rollout.drafter.scheme import PackedLinear

# Outputs whose weights lie side by side, and inputs of an output that do.
_PANEL, _INT4_BLOCK = 16, 8
_INT8_BLOCK, _INT8_INPUTS = 16, 4


class _NativeLinear(PackedLinear):
    """Multiplies by activations in int8, with a scale per row and group; its subclasses make the memory of the pack."""

    _kernel: str  # as in the kernels' names

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        group_size: int,
        values: torch.Tensor,
        scales: torch.Tensor,
    ) -> None:
        self.group_size, self._values, self._scales = group_size, values, scales
        super().__init__(weight, bias)

    def requantize(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().requantize(weight, bias)
        self._float32_bias = None if self.bias is None else self.bias.float()

    def _pack(self, weight: torch.Tensor) -> None:
        weight = weight.float().contiguous()
        pack = getattr(load_library(), f"er_{self._kernel}_pack")
        if pack(address(weight), *weight.shape, self.group_size, address(self._values), address(self._scales)):
            raise MemoryError("no memory to quantize a layer")

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.float().contiguous()
        output = torch.empty(rows.shape[0], self.out_features, dtype=torch.float32)
        num_groups = self.in_features // self.group_size
        scratch = torch.empty(rows.shape[0] * (self.in_features + 8 * num_groups), dtype=torch.int8)
        getattr(load_library(), f"er_{self._kernel}_multiply")(
            address(rows), rows.shape[0], address(self._values), address(self._scales),
            self.out_features, self.in_features, self.group_size,
            address(self._float32_bias), address(output), address(scratch),
        )  # fmt: skip
        return output.to(self.dtype)

    @property
    def num_bytes(self) -> int:
        return self._values.nbytes + self._scales.nbytes + self._bias_bytes()


class Int8NativeLinear(_NativeLinear):
    """Multiplies int8 weights, with a float32 scale per output channel, by int8 activations, with a scale per row.

    Weights [out_features, in_features], multiples of 16, are rounded to the nearest of 255 values. Products are summed
    as integers: exactly.
    """

    _kernel = "q8"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        outputs, inputs = weight.shape
        values, scales = torch.empty(outputs * inputs, dtype=torch.int8), torch.empty(outputs, dtype=torch.float32)
        super().__init__(weight, bias, inputs, values, scales)

    def dequantize(self) -> torch.Tensor:
        blocks = self._values.view(-1, self.in_features // _INT8_INPUTS, _INT8_BLOCK, _INT8_INPUTS)
        values = blocks.transpose(1, 2).reshape(self.out_features, self.in_features)
        return values.float() * self._scales.unsqueeze(1)


class Int4NativeLinear(_NativeLinear):
    """Multiplies int4 weights by int8 activations: about half the bytes of int8.

    weight ~ (values - 8) * scale + offset, with the nearest of 16 values, and a scale and an offset per group in
    bfloat16. Products are summed in float32, in an order that does not depend on the number of rows.

    Args:
        weight: [out_features, in_features]; multiples of 8 and of `group_size`.
        bias: [out_features] or None.
        group_size: Input channels that share a scale and an offset; a multiple of 32.
    """

    _kernel = "q4"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, group_size: int) -> None:
        outputs, inputs = weight.shape
        values = torch.empty(outputs * inputs // 2, dtype=torch.uint8)
        # [outputs / 8, groups, 2, 8]: scales, then offsets.
        scales = torch.empty(outputs // _INT4_BLOCK, inputs // group_size, 2, _INT4_BLOCK, dtype=torch.bfloat16)
        super().__init__(weight, bias, group_size, values, scales)

    def dequantize(self) -> torch.Tensor:
        blocks, eights = self.out_features // _INT4_BLOCK, self.in_features // 8
        halves = self._values.view(blocks, eights, _INT4_BLOCK, 1, 4)
        values = torch.cat([halves & 15, halves >> 4], dim=3).transpose(1, 2).reshape(-1, self.in_features)
        per_group = self._scales.permute(2, 0, 3, 1).reshape(2, self.out_features, -1)
        scales, offsets = per_group.float().repeat_interleave(self.group_size, 2)
        return (values.float() - 8) * scales + offsets


def takes(weight: torch.Tensor) -> bool:
    """Tell whether `Float32NativeLinear` can hold such a weight."""
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


class _Arguments(ctypes.Structure):
    """Mirrors `Attention` of float32.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "output", "cache", "query_starts", "lengths", "blocks")),
        *((name, ctypes.c_long) for name in ("query_stride", "output_stride", "blocks_stride", "requests", "heads")),
        *((name, ctypes.c_long) for name in ("kv_heads", "head_dim", "block_size")),
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
    """Attend causally with every query; a position's result is the same, bit for bit, however many come with it.

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
