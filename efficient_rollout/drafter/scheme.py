"""What a scheme is: which shapes it takes, and how it packs a weight, padded to whole tiles of its kernel."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from efficient_rollout.drafter.packed_linear import PackedLinear

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Twice the weights in int8 are as many bytes as a policy in 16 bits has.
_MOST_PADDING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """Describes one way to quantize the policy.

    Attributes:
        name: As in the settings.
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
        """Make a packed layer of a weight that it `takes`.

        Args:
            weight: [out_features, in_features]; read, not kept.
            bias: [out_features] or None.
        """
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
    """Computes a layer with a packed one of whole tiles.

    Inputs get zeros, and outputs behind the last are cut off.

    At padded inputs the weight repeats its last column, so that a group's range and a row's largest value stay those of
    the real weights; to a product it does not matter what zeros are multiplied by.

    Args:
        layer: Makes a packed layer from a weight of whole tiles and no bias.
        weight: [out_features, in_features].
        bias: [out_features] or None.
        padded_shape: Whole tiles, at least as large as the weight.
    """

    def __init__(
        self,
        layer: Callable[[torch.Tensor, torch.Tensor | None], PackedLinear],
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        padded_shape: tuple[int, int],
    ) -> None:
        self._layer, self._padded_shape = layer, padded_shape
        self._tiles: PackedLinear | None = None
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
