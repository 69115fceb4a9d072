"""INT4 weights by INT8 activations, on CPUs with AVX2: about half the bytes of int8."""

import torch

from efficient_rollout.drafter.native.library import address, load_library, size
from efficient_rollout.drafter.packed_linear import PackedLinear

_BLOCK = 8  # outputs whose weights lie side by side


class Int4NativeLinear(PackedLinear):
    """Packed nibbles, a scale and an offset per group in bfloat16; activations get a scale per row and group.

    Values, scales and offsets are those of `quantize_int4`. Products are summed in float32, in an order that does not
    depend on the number of rows.

    Args:
        weight: [out_features, in_features]; multiples of 8 and of `group_size`.
        bias: [out_features] or None.
        group_size: Input channels that share a scale and an offset; a multiple of 32.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, group_size: int) -> None:
        self.group_size = group_size
        outputs, inputs = weight.shape
        self._nibbles = torch.empty(outputs * inputs // 2, dtype=torch.uint8)
        # [outputs / 8, groups, 2, 8]: scales, then offsets.
        self._scales = torch.empty(outputs // _BLOCK, inputs // group_size, 2, _BLOCK, dtype=torch.bfloat16)
        super().__init__(weight, bias)

    def _pack(self, weight: torch.Tensor) -> None:
        weight = weight.float().contiguous()
        failed = load_library().er_q4_pack(
            address(weight), *map(size, (*weight.shape, self.group_size)), address(self._nibbles), address(self._scales)
        )
        if failed:
            raise MemoryError("no memory to quantize a layer")

    def requantize(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """In place; see `PackedLinear.requantize`."""
        super().requantize(weight, bias)
        self._bias = None if self.bias is None else self.bias.float()

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.float().contiguous()
        num_rows = rows.shape[0]
        output = torch.empty(num_rows, self.out_features, dtype=torch.float32)
        scratch = torch.empty(num_rows * (self.in_features + 8 * self.in_features // self.group_size), dtype=torch.int8)
        load_library().er_q4_multiply(
            address(rows), size(num_rows), address(self._nibbles), address(self._scales),
            *map(size, (self.out_features, self.in_features, self.group_size)),
            address(self._bias), address(output), address(scratch),
        )  # fmt: skip
        return output.to(self.dtype)

    @property
    def num_bytes(self) -> int:
        return self._nibbles.nbytes + self._scales.nbytes + self._bias_bytes()

    def dequantize(self) -> torch.Tensor:
        blocks, eights = self.out_features // _BLOCK, self.in_features // 8
        halves = self._nibbles.view(blocks, eights, _BLOCK, 1, 4)
        values = torch.cat([halves & 15, halves >> 4], dim=3).transpose(1, 2).reshape(-1, self.in_features)
        scales, offsets = (
            self._scales[:, :, i].transpose(1, 2).reshape(self.out_features, -1).float() for i in range(2)
        )
        return (values.float() - 8) * scales.repeat_interleave(self.group_size, 1) + offsets.repeat_interleave(
            self.group_size, 1
        )
