"""INT8: symmetric per output channel; activations quantized per row at run time."""

import torch

from efficient_rollout.drafter.cpu.native.library import address, load_library, size
from efficient_rollout.drafter.cpu.native_linear import NativeLinear

_BLOCK = 16  # outputs whose weights lie side by side
_INPUTS = 4  # inputs of an output that do


class Int8NativeLinear(NativeLinear):
    """Holds packed bytes and a float32 scale per output channel; activations get a scale per row.

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
            address(weight), *map(size, weight.shape), address(self._values), address(self._scales)
        )
        return failed

    @property
    def _scratch_bytes_per_row(self) -> int:
        return self.in_features + 8

    def _multiply_float32(self, rows: torch.Tensor, output: torch.Tensor, scratch: torch.Tensor) -> None:
        load_library().er_q8_multiply(
            address(rows), size(rows.shape[0]), address(self._values), address(self._scales),
            *map(size, (self.out_features, self.in_features)),
            address(self._float32_bias), address(output), address(scratch),
        )  # fmt: skip

    @property
    def num_bytes(self) -> int:
        return self._values.nbytes + self._scales.nbytes + self._bias_bytes()

    def dequantize(self) -> torch.Tensor:
        blocks = self._values.view(-1, self.in_features // _INPUTS, _BLOCK, _INPUTS)
        values = blocks.transpose(1, 2).reshape(self.out_features, self.in_features)
        return values.float() * self._scales.unsqueeze(1)
