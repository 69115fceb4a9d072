"""The drafter's weights: one packed layer per linear layer of the policy, refreshed as the policy's arrive."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from efficient_rollout.drafter.packed_linear import PackedLinear
from efficient_rollout.drafter.scheme import Scheme
from efficient_rollout.drafter.stopwatch import Stopwatch


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """Says what one pass over the policy's weights cost.

    Attributes:
        num_layers: Layers quantized since the last report.
        seconds: Time of quantizing and packing them, by the clock of the device that did.
        num_bytes: Memory of all packed layers.
        fault: Why the last of them failed; None while the packed weights are those of the policy.
    """

    num_layers: int
    seconds: float
    num_bytes: int
    fault: str | None


class PackedWeights:
    """Holds packed layers by the policy's own layer names.

    Args:
        scheme: How to quantize.
        quantize_output_head: Whether output heads are packed too.

    Attributes:
        is_held: While true, `refresh` leaves packed layers as they are: the drafter stays that of an older policy.
        product_faults: Products that could not be computed, where ranks compute them together (`PackedLinear.faults`);
            None where the first fault raises.
    """

    def __init__(self, scheme: Scheme, *, quantize_output_head: bool) -> None:
        self.scheme = scheme
        self.quantize_output_head = quantize_output_head
        self.is_held = False
        self.product_faults: list[str] | None = None
        self._layers: dict[str, PackedLinear] = {}
        self._num_layers = 0
        self._stopwatch: Stopwatch | None = None
        self._fault: str | None = None

    @property
    def layers(self) -> Mapping[str, PackedLinear]:
        """Return packed layers by name; a layer the scheme does not take is absent."""
        return self._layers

    @property
    def num_bytes(self) -> int:
        """Return the memory of all packed layers."""
        return sum(layer.num_bytes for layer in self._layers.values())

    def refresh(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Quantize the policy's layer `name` into its packed twin, made here the first time.

        What fails is in the next report: this is called inside the load of the policy's own weights, which must go on.

        Args:
            name: The policy's layer name.
            weight: [out_features, in_features], on the policy's device; read, not kept.
            bias: [out_features] or None.
        """
        if self.is_held and name in self._layers:
            return
        if not self.scheme.takes(*weight.shape, weight.dtype):
            return
        if self._stopwatch is None:
            self._stopwatch = Stopwatch(weight.device)
        try:
            with self._stopwatch:
                self._take(name, weight, bias)
        except (RuntimeError, MemoryError, ValueError) as error:
            self._fault = f"quantizing {name} failed: {type(error).__name__}: {error}"
            return
        self._num_layers += 1

    def _take(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        if name in self._layers:
            self._layers[name].requantize(weight, bias)
            return
        layer = self.scheme.pack(weight, bias)
        layer.name(name)
        layer.faults = self.product_faults
        self._layers[name] = layer

    def take_report(self) -> RefreshReport:
        """Return layers, seconds and the last fault since the last call; waits for what a GPU has not quantized yet."""
        seconds = 0.0
        if self._stopwatch is not None:
            seconds = self._stopwatch.seconds()
            self._stopwatch.reset()
        report = RefreshReport(self._num_layers, seconds, self.num_bytes, self._fault)
        self._num_layers, self._fault = 0, None
        return report
