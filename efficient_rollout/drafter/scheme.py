"""What a scheme is: which shapes it takes, and the layer that it packs a weight into, padded to its kernel's tiles."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Twice the weights in int8 are as many bytes as a policy in 16 bits has.
_MOST_PADDING = 2

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
    """Computes `y = x W^T + b` with W quantized. It owns its packed weight and a bias, which `requantize` replaces.

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
            weight: [out_features, in_features], of one of `FLOAT_DTYPES`, on this layer's device. Not kept.
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
        """Let compiled code find this layer under `name`; the last layer to take one in this process has it."""
        self._name = name
        _named_layers[name] = self

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in_features], of the weight's dtype, to [..., out_features] of the same."""
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
        """Return what the kernel multiplies by, read back from the pack: float32 [out_features, in_features]."""

    @abstractmethod
    def _pack(self, weight: torch.Tensor) -> None: ...

    @abstractmethod
    def _multiply(self, rows: torch.Tensor) -> torch.Tensor: ...

    def _bias_bytes(self) -> int:
        return 0 if self.bias is None else self.bias.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """Describes one way to quantize the policy.

    Attributes:
        kernel: Whose kernel multiplies, for the log.
        layer: Makes a packed layer from a weight [out_features, in_features] of whole tiles, in any of `FLOAT_DTYPES`,
            and a bias or None; None where the scheme keeps the policy's own layer.
        missing: What the kernel lacks here; None when it can run.
        tile: Outputs and inputs that the kernel computes at a time. Other weights are padded to whole tiles.
    """

    name: str
    kernel: str
    layer: Callable[[torch.Tensor, torch.Tensor | None], PackedLinear] | None
    missing: Callable[[], str | None]
    tile: tuple[int, int] = (1, 1)

    @property
    def what_it_takes(self) -> str:
        """Say in words which of the policy's layers it packs; weights are outputs x inputs."""
        if self.layer is None:
            return "no layer of the policy"
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
        outputs, inputs = self.tile
        return f"{dtypes}; weights that padding to multiples of {outputs} x {inputs} does not more than double"

    def takes(self, out_features: int, in_features: int, dtype: torch.dtype) -> bool:
        """Tell whether it packs such a weight. Others stay unquantized, and are counted."""
        padded_outputs, padded_inputs = self._padded(out_features, in_features)
        is_worth_it = padded_outputs * padded_inputs <= _MOST_PADDING * out_features * in_features
        return self.layer is not None and dtype in FLOAT_DTYPES and is_worth_it

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
        """Make a packed layer of a weight that it `takes`, [out_features, in_features], which is not kept."""
        assert self.layer is not None
        padded_shape = self._padded(*weight.shape)
        if padded_shape == weight.shape:
            return self.layer(weight, bias)
        return PaddedLinear(self.layer, weight, bias, padded_shape=padded_shape)

    def _padded(self, out_features: int, in_features: int) -> tuple[int, int]:
        outputs, inputs = self.tile
        return -(-out_features // outputs) * outputs, -(-in_features // inputs) * inputs


UNQUANTIZED = Scheme(name="unquantized", kernel="the policy's", layer=None, missing=lambda: None)


class PaddedLinear(PackedLinear):
    """Computes a layer with a packed one of whole tiles: inputs get zeros, and outputs behind the last are cut off.

    At padded inputs the weight repeats its last column, so that a group's range and a row's largest value stay those of
    the real weights; to a product it does not matter what zeros are multiplied by.

    Args:
        layer: Makes a packed layer from a weight of whole tiles and no bias.
        weight: [out_features, in_features].
        bias: [out_features] or None.
        padded_shape: Whole tiles, at least as large as the weight.
    """

    _tiles: PackedLinear | None = None

    def __init__(
        self,
        layer: Callable[[torch.Tensor, torch.Tensor | None], PackedLinear],
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        padded_shape: tuple[int, int],
    ) -> None:
        self._layer, self._padded_shape = layer, padded_shape
        super().__init__(weight, bias)

    def _pack(self, weight: torch.Tensor) -> None:
        outputs, inputs = (padded - real for padded, real in zip(self._padded_shape, weight.shape, strict=True))
        weight = torch.nn.functional.pad(weight.unsqueeze(0), (0, inputs, 0, outputs), mode="replicate").squeeze(0)
        if self._tiles is None:
            self._tiles = self._layer(weight, None)
        else:
            self._tiles.requantize(weight)

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        assert self._tiles is not None
        rows = torch.nn.functional.pad(rows, (0, self._padded_shape[1] - self.in_features))
        output = self._tiles.multiply(rows)[:, : self.out_features]
        return output.contiguous() if self.bias is None else output + self.bias

    @property
    def num_bytes(self) -> int:
        assert self._tiles is not None
        return self._tiles.num_bytes + self._bias_bytes()

    def dequantize(self) -> torch.Tensor:
        assert self._tiles is not None
        return self._tiles.dequantize()[: self.out_features, : self.in_features]
