"""The drafter's weights: one packed layer per linear layer of the policy, refreshed as the policy's arrive."""

import torch

from efficient_rollout.drafter import columns
from efficient_rollout.drafter.scheme import PackedLinear, Scheme
from efficient_rollout.drafter.stopwatch import Stopwatch


class PackedWeights:
    """Holds packed layers by the policy's own layer names.

    Attributes:
        layers: By name; a layer the scheme does not take is absent.
        product_faults: Products that could not be computed, where ranks compute them together (`PackedLinear.faults`);
            None where the first fault raises.
        turn: Which weight sync this is; None at the first load. In a sync some rows of each layer that is due are
            quantized apart, for `take_difference`.
    """

    def __init__(self, scheme: Scheme, *, quantize_output_head: bool) -> None:
        self.scheme, self.quantize_output_head = scheme, quantize_output_head
        self.layers: dict[str, PackedLinear] = {}
        self.product_faults: list[str] | None = None
        self.turn: int | None = None
        self._apart: dict[str, tuple[int, torch.Tensor] | None] = {}
        self._stopwatch: Stopwatch | None = None
        self._fault: str | None = None

    @property
    def num_bytes(self) -> int:
        """Return the memory of all packed layers."""
        return sum(layer.num_bytes for layer in self.layers.values())

    def refresh(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Quantize the policy's layer `name` into its packed twin, made here the first time.

        What fails is in the next report: this is called inside the load of the policy's own weights, which must go on.

        Weight [out_features, in_features] and bias [out_features] are on the policy's device, and not kept.
        """
        if not self.scheme.takes(*weight.shape, weight.dtype):
            return
        if self._stopwatch is None:
            self._stopwatch = Stopwatch(weight.device)
        try:
            with self._stopwatch:
                if name in self.layers:
                    self.layers[name].requantize(weight, bias)
                else:
                    layer = self.scheme.pack(weight, bias)
                    layer.name(name)
                    layer.faults = self.product_faults
                    self.layers[name] = layer
            if self.turn is not None:
                is_due = columns.is_due(name, self.turn)
                self._apart[name] = self._quantized_apart(name, weight, bias) if is_due else None
        except (RuntimeError, MemoryError, ValueError) as error:
            self._fault = f"quantizing {name} failed: {type(error).__name__}: {error}"

    def _quantized_apart(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[int, torch.Tensor]:
        """Return the number of the first of some rows, and one column of them, as this scheme quantizes them."""
        num_rows = min(self.scheme.tile[0], len(weight))
        first = columns.place(name, len(weight) - num_rows + 1, (self.turn or 0) // columns.PERIOD)
        rows = slice(first, first + num_rows)
        layer = self.scheme.pack(weight[rows], None if bias is None else bias[rows])
        return first, self._column(name, layer, weight[0])

    def _column(self, name: str, layer: PackedLinear, like: torch.Tensor) -> torch.Tensor:
        """Return a column of what a layer multiplies by, plus its bias; `like` is a row of the policy's weight."""
        column = columns.place(name, layer.in_features, (self.turn or 0) // columns.PERIOD)
        return columns.multiplied(layer.multiply, column, like)

    def take_difference(self) -> str | None:
        """Say which layers were not quantized since the last call, or multiply by other values than the policy's rows.

        Those that are due are asked, for a column of the rows that were quantized apart. None where all is well.
        """
        apart, self._apart = self._apart, {}
        wrong = [name for name in self.layers if name not in apart]
        for name, (first, expected) in ((name, one) for name, one in apart.items() if one is not None):
            try:
                held = self._column(name, self.layers[name], expected.new_zeros(self.layers[name].in_features))
            except RuntimeError as error:
                return f"a product of {name} failed: {type(error).__name__}: {error}"
            if columns.num_differing(held[first : first + len(expected)], expected):
                wrong.append(name)
        if not wrong:
            return None
        return f"{len(wrong)} of its {len(self.layers)} layers are not the policy's, quantized: {', '.join(wrong[:5])}"

    def take_report(self) -> tuple[float, str | None]:
        """Return what was refreshed since the last call: seconds of quantizing and packing, and what failed last.

        The seconds are the device's, and are waited for. None where the packed weights are those of the policy.
        """
        seconds, fault, self._fault = 0.0, self._fault, None
        if self._stopwatch is not None:
            seconds = self._stopwatch.seconds()
            self._stopwatch.reset()
        return seconds, fault
