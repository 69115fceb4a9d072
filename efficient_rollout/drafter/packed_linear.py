"""What every scheme provides: a linear layer whose weight is held quantized and packed for one kernel."""

from abc import ABC, abstractmethod

import torch


class PackedLinear(ABC):
    """`y = x W^T + b` with W quantized. Owns its packed weight, and a copy of the bias.

    `requantize` replaces the weight; the object stays, so that a layer bound to it never has to be rebound.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.bias: torch.Tensor | None = None
        self.requantize(weight, bias)

    def requantize(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Take new values.

        Args:
            weight: [out_features, in_features], bfloat16 or float32, on this layer's device. Not kept.
            bias: [out_features], or None. Copied.

        Raises:
            ValueError: The shape or dtype differs from the weight this layer was made with.
        """
        if weight.shape != (self.out_features, self.in_features) or weight.dtype != self.dtype:
            raise ValueError(
                f"requantize expects {self.dtype} [{self.out_features}, {self.in_features}], "
                f"got {weight.dtype} {list(weight.shape)}"
            )
        self._pack(weight.detach())
        self.bias = None if bias is None else bias.detach().to(self.dtype, copy=True)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply.

        Args:
            x: [..., in_features], of the weight's dtype.

        Returns:
            [..., out_features], of the same dtype.
        """
        rows = x.reshape(-1, self.in_features)
        return self._multiply(rows).view(*x.shape[:-1], self.out_features)

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Memory held: packed weight, scales, zero points, bias."""

    @abstractmethod
    def dequantize(self) -> torch.Tensor:
        """The weight the kernel really multiplies by, float32 [out_features, in_features], read back from the pack."""

    @abstractmethod
    def _pack(self, weight: torch.Tensor) -> None: ...

    @abstractmethod
    def _multiply(self, rows: torch.Tensor) -> torch.Tensor: ...

    def _bias_bytes(self) -> int:
        return 0 if self.bias is None else self.bias.nbytes
