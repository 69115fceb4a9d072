"""INT8 weights by INT8 activations on CPUs without VNNI, where oneDNN has no kernels that are fast."""

import torch

from efficient_rollout.drafter.native.library import address, load_library, size
from efficient_rollout.drafter.packed_linear import PackedLinear

_BLOCK = 16  # outputs whose weights lie side by side
_INPUTS = 4  # inputs of an output that do


class Int8NativeLinear(PackedLinear):
    """Packed bytes and a float32 scale per output channel; activations get a scale per row.

    Values and scales are those of `quantize_int8`. Products are summed as integers: exactly.

    Args:
        weight: [out_features, in_features]; multiples of 16.
        bias: [out_features] or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._values = torch.empty(weight.numel(), dtype=torch.int8)
        self._scales = torch.empty(weight.shape[0], dtype=torch.float32)
        super().__init__(weight, bias)

    def _pack(self, weight: torch.Tensor) -> None:
        weight = weight.float().contiguous()
        failed = load_library().er_q8_pack(
            address(weight), *map(size, weight.shape), address(self._values), address(self._scales)
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
        scratch = torch.empty(num_rows * (self.in_features + 8), dtype=torch.int8)
        load_library().er_q8_multiply(
            address(rows), size(num_rows), address(self._values), address(self._scales),
            size(self.out_features), size(self.in_features), address(self._bias), address(output), address(scratch),
        )  # fmt: skip
        return output.to(self.dtype)

    @property
    def num_bytes(self) -> int:
        return self._values.nbytes + self._scales.nbytes + self._bias_bytes()

    def dequantize(self) -> torch.Tensor:
        blocks = self._values.view(-1, self.in_features // _INPUTS, _BLOCK, _INPUTS)
        values = blocks.transpose(1, 2).reshape(self.out_features, self.in_features)
        return values.float() * self._scales.unsqueeze(1)
