"""What the layers on this package's kernels share: rows in and out in float32, the bias added by the kernel."""

from abc import abstractmethod

import torch

from efficient_rollout.drafter.packed_linear import PackedLinear


class NativeLinear(PackedLinear):
    """Converts rows and bias, and owns the memory of a product."""

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
    @abstractmethod
    def _scratch_bytes_per_row(self) -> int: ...

    @abstractmethod
    def _pack_float32(self, weight: torch.Tensor) -> int:
        """Quantize and pack [out_features, in_features]. Return 0, or 1 where memory ran out."""

    @abstractmethod
    def _multiply_float32(self, rows: torch.Tensor, output: torch.Tensor, scratch: torch.Tensor) -> None: ...
