"""Weights that are no whole number of a kernel's tiles."""

from collections.abc import Callable

import torch

from efficient_rollout.drafter.packed_linear import PackedLinear


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
