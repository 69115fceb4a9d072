"""INT4: asymmetric, groups of input channels; activations quantized per row and group, to int8, at run time."""

import torch

from efficient_rollout.drafter.cpu.native.library import address, load_library, size
from efficient_rollout.drafter.cpu.native_linear import NativeLinear

_BLOCK = 8  # outputs whose weights lie side by side


class Int4NativeLinear(NativeLinear):
    """Holds packed nibbles, and a scale and an offset per group in bfloat16.

    Activations get a scale per row and group.

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
        self._nibbles = torch.empty(outputs * inputs // 2, dtype=torch.uint8)
        # [outputs / 8, groups, 2, 8]: scales, then offsets.
        self._scales = torch.empty(outputs // _BLOCK, inputs // group_size, 2, _BLOCK, dtype=torch.bfloat16)
        super().__init__(weight, bias)

    def _pack_float32(self, weight: torch.Tensor) -> int:
        failed: int = load_library().er_q4_pack(
            address(weight), *map(size, (*weight.shape, self.group_size)), address(self._nibbles), address(self._scales)
        )
        return failed

    @property
    def _scratch_bytes_per_row(self) -> int:
        return self.in_features + 8 * self.in_features // self.group_size

    def _multiply_float32(self, rows: torch.Tensor, output: torch.Tensor, scratch: torch.Tensor) -> None:
        load_library().er_q4_multiply(
            address(rows), size(rows.shape[0]), address(self._nibbles), address(self._scales),
            *map(size, (self.out_features, self.in_features, self.group_size)),
            address(self._float32_bias), address(output), address(scratch),
        )  # fmt: skip

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
