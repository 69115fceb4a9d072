"""Float32, unquantized, for the policy itself: verifying a few positions costs hardly more than one, on AVX2.

oneDNN, which vLLM uses, takes half as long again for 5 rows as for 1 on CPUs without AVX512.
"""

import torch

from efficient_rollout.drafter.cpu.native.library import address, load_library, size
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
        load_library().er_f32_pack(address(weight), *map(size, weight.shape), address(self._panels))

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.contiguous()
        output = torch.empty(rows.shape[0], self.out_features, dtype=torch.float32)
        load_library().er_f32_multiply(
            address(rows), size(rows.shape[0]), address(self._panels), size(self.out_features), size(self.in_features),
            address(self.bias), address(output),
        )  # fmt: skip
        return output

    @property
    def num_bytes(self) -> int:
        return self._panels.nbytes + self._bias_bytes()

    def dequantize(self) -> torch.Tensor:
        panels = self._panels.view(-1, self.in_features, _PANEL)
        return panels.transpose(1, 2).reshape(self.out_features, self.in_features)
