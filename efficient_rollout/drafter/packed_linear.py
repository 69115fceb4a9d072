"""What every scheme provides: a linear layer whose weight is held quantized and packed for one kernel."""

from abc import ABC, abstractmethod
from weakref import WeakValueDictionary

import torch

# A compiler sees a product as one operator it cannot look into: packed weights are objects of foreign libraries, and
# are replaced at every weight sync. The layer is named in the graph, as vLLM names its attention layers.
_library = torch.library.Library("efficient_rollout", "DEF")
_library.define("packed_linear(Tensor x, str layer, int out_features) -> Tensor")
_named_layers: "WeakValueDictionary[str, PackedLinear]" = WeakValueDictionary()


@torch.library.impl(_library, "packed_linear", "CUDA")
@torch.library.impl(_library, "packed_linear", "CPU")
def _packed_linear(x: torch.Tensor, layer: str, out_features: int) -> torch.Tensor:  # noqa: ARG001 - for the shape
    return _named_layers[layer].multiply(x)


@torch.library.impl(_library, "packed_linear", "Meta")
def _packed_linear_shape(x: torch.Tensor, layer: str, out_features: int) -> torch.Tensor:  # noqa: ARG001
    return x.new_empty(*x.shape[:-1], out_features)


class PackedLinear(ABC):
    """Computes `y = x W^T + b` with W quantized. It owns its packed weight, and a copy of the bias.

    `requantize` replaces the weight; the object stays, so that a layer bound to it never has to be rebound.

    Attributes:
        faults: Where this is a list, a product that cannot be computed is noted in it, and is zero. For ranks that
            compute one model together: one that raised would leave the others waiting for its part of the product.
    """

    _name: str | None = None
    faults: list[str] | None = None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.bias: torch.Tensor | None = None
        self.requantize(weight, bias)

    def requantize(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Take new values.

        Args:
            weight: [out_features, in_features], bfloat16, float16 or float32, on this layer's device. Not kept.
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
        if bias is None or self.bias is None:
            self.bias = None if bias is None else bias.detach().to(self.dtype, copy=True)
        else:  # in place: what a captured graph reads keeps its address
            self.bias.copy_(bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Compute `multiply`; in compiled code, as one operator, for a layer that has a name."""
        if self._name is not None and torch.compiler.is_compiling():
            product: torch.Tensor = torch.ops.efficient_rollout.packed_linear(x, self._name, self.out_features)
            return product
        return self.multiply(x)

    def name(self, name: str) -> None:
        """Let compiled code find this layer under `name`, which is unique in this process.

        The last layer to take a name has it.
        """
        self._name = name
        _named_layers[name] = self

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply.

        Args:
            x: [..., in_features], of the weight's dtype.

        Returns:
            [..., out_features], of the same dtype.
        """
        rows = x.reshape(-1, self.in_features)
        try:
            product = self._multiply(rows)
        except Exception as error:
            if self.faults is None:
                raise
            self.faults.append(f"{type(error).__name__}: {error}")
            product = rows.new_zeros(rows.shape[0], self.out_features)
        return product.view(*x.shape[:-1], self.out_features)

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Return the memory held: packed weight, scales, zero points, bias."""

    @abstractmethod
    def dequantize(self) -> torch.Tensor:
        """Return the weight that the kernel really multiplies by, read back from the pack.

        It is float32 [out_features, in_features].
        """

    @abstractmethod
    def _pack(self, weight: torch.Tensor) -> None: ...

    @abstractmethod
    def _multiply(self, rows: torch.Tensor) -> torch.Tensor: ...

    def _bias_bytes(self) -> int:
        return 0 if self.bias is None else self.bias.nbytes
