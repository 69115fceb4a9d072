"""Two schemes in memory, and the number of rows of each product chooses."""

import torch

from efficient_rollout.drafter.packed_linear import PackedLinear


class MixedLinear(PackedLinear):
    """One packed layer for few rows, where bytes are what a product costs, and another for many.

    Args:
        few: Used for up to `few_max_rows` rows.
        many: Used for more; of the same shape, dtype and weight.
        few_max_rows: At least 1.
    """

    def __init__(self, few: PackedLinear, many: PackedLinear, *, few_max_rows: int) -> None:
        self.out_features, self.in_features, self.dtype = few.out_features, few.in_features, few.dtype
        self.bias = few.bias
        self._few, self._many, self._few_max_rows = few, many, few_max_rows

    def requantize(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Both; see `PackedLinear.requantize`."""
        self._few.requantize(weight, bias)
        self._many.requantize(weight, bias)
        self.bias = self._few.bias

    def _pack(self, weight: torch.Tensor) -> None:  # noqa: ARG002 - the base class's signature
        raise AssertionError("both layers pack for themselves")

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        return (self._few if rows.shape[0] <= self._few_max_rows else self._many)._multiply(rows)

    @property
    def num_bytes(self) -> int:
        return self._few.num_bytes + self._many.num_bytes

    def dequantize(self) -> torch.Tensor:
        """The weight of the layer for many rows."""
        return self._many.dequantize()
