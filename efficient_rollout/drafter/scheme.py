"""What a scheme is: which shapes it takes, and how it packs a weight."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from efficient_rollout.drafter.packed_linear import PackedLinear
from efficient_rollout.drafter.padded import PaddedLinear

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
