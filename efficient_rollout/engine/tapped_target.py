"""Let the drafter see each of the policy's weights at the one moment it exists whole and unpacked.

vLLM fuses checkpoint tensors into layers (q, k, v into one) and then hands each layer to its quant method, at
first load and at every layerwise reload; on a CPU that method repacks the weight and drops the original. A
quantization config whose methods quantize for the drafter first, then do what stock vLLM does, needs neither a
second read of the checkpoint nor a second copy of the weights. The policy itself stays unquantized.
"""

from collections import Counter
from typing import Any, Literal

import torch
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from efficient_rollout.drafter.cpu.layers import Float32NativeLinear, takes
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.scheme import FLOAT_DTYPES, PackedLinear

# How the policy's own layers compute: stock; on this package's float32 kernel where that takes them; or with the weight
# as it was loaded, which a weight sync then writes into.
Products = Literal["stock", "native", "in place"]


class _InternalConfig(QuantizationConfig):
    """Is a config that this package sets on an engine, and that is never read from a checkpoint."""

    def get_name(self) -> Any:
        return "efficient_rollout"

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return list(FLOAT_DTYPES)

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizationConfig":
        raise NotImplementedError("set on the engine, never read from a checkpoint")


class TappedTargetConfig(_InternalConfig):
    """Serves the policy: its layers are unquantized, and show their weights to `packed`; heads where it takes those."""

    def __init__(self, packed: PackedWeights, *, products: Products) -> None:
        super().__init__()
        self._packed, self._products = packed, products
        self._num_named: Counter[str] = Counter()

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if not isinstance(layer, LinearBase | ParallelLMHead):
            return None
        # A name of its own: architectures are free to give two layers one prefix, or none.
        self._num_named[prefix] += 1
        number = self._num_named[prefix]
        method = _TappedLinearMethod() if isinstance(layer, LinearBase) else _TappedHeadMethod()
        method.tap = _Tap(self._packed, prefix if number == 1 else f"{prefix}#{number}", self._products)
        return method


def packed_twin(layer: torch.nn.Module, packed: PackedWeights) -> PackedLinear | None:
    """Return the packed layer that one of the policy's layers was quantized into; None where there is none."""
    tap = getattr(getattr(layer, "quant_method", None), "tap", None)
    return packed.layers.get(tap.name) if isinstance(tap, _Tap) else None


class _Tap:
    """Does what happens to one layer's weight beside what stock vLLM does."""

    def __init__(self, packed: PackedWeights, name: str, products: Products) -> None:
        self.packed, self.name, self._products = packed, name, products
        self._product: Float32NativeLinear | None = None

    def show(self, layer: torch.nn.Module) -> None:
        # Where inputs are split over ranks, every rank holds the bias and the first adds it.
        adds_bias = not isinstance(layer, RowParallelLinear) or layer.tp_rank == 0
        self.packed.refresh(self.name, layer.weight.data, layer.bias if adds_bias else None)

    def keep(self, layer: torch.nn.Module) -> bool:
        """Leave the weight where it was loaded; False where stock does with it as it pleases."""
        is_kept = self._products == "in place"
        # On a GPU stock leaves it there too. On a CPU it would pack it, but for this hook of its own.
        if is_kept and layer.weight.device.type == "cpu":
            layer.cpu_linear = torch.nn.functional.linear
        return is_kept

    def take_over(self, layer: torch.nn.Module) -> bool:
        """Compute the layer's products natively from now on, through vLLM's own hook; False where stock must."""
        weight = layer.weight.data
        if self._products != "native" or not takes(weight):
            return False
        if self._product is None:
            self._product = Float32NativeLinear(weight)
            self._product.name(f"policy.{self.name}")
        else:
            self._product.requantize(weight)
        product = self._product
        layer.cpu_linear = lambda x, _weight, bias: product(x) if bias is None else product(x) + bias
        return True


class _TappedLinearMethod(UnquantizedLinearMethod):
    tap: _Tap

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        self.tap.show(layer)
        if self.tap.keep(layer):
            return
        if self.tap.take_over(layer):
            # As stock does, which packs the weight too and keeps the pack alone.
            empty = torch.empty(0, dtype=layer.weight.dtype, device=layer.weight.device)
            layer.weight = torch.nn.Parameter(empty, requires_grad=False)
        else:
            super().process_weights_after_loading(layer)


class _TappedHeadMethod(UnquantizedEmbeddingMethod):
    tap: _Tap

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        if self.tap.packed.quantize_output_head:
            self.tap.show(layer)
        # A head keeps its weight, which may be the embedding's.
        if not self.tap.keep(layer) and not self.tap.take_over(layer):
            super().process_weights_after_loading(layer)


class HollowDrafterConfig(_InternalConfig):
    """Serves the building of the drafter, with layers to be filled by `PackedMethod` or by the policy's own."""

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if isinstance(layer, LinearBase | VocabParallelEmbedding):
            return _HollowMethod()
        return None


class _HollowMethod(LinearMethodBase):
    def create_weights(self, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        layer.register_parameter("weight", torch.nn.Parameter(torch.empty(0), requires_grad=False))

    def apply(self, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        raise AssertionError(f"{type(layer).__name__} of the drafter was never linked to a weight")

    def embedding(self, layer: torch.nn.Module, input_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the drafter's embedding was never linked to the policy's")

    def tie_weights(self, layer: torch.nn.Module, embed_tokens: torch.nn.Module) -> torch.nn.Module:
        return layer


class PackedMethod(LinearMethodBase):
    """Computes a drafter layer with its packed weight, bias included."""

    def __init__(self, packed: PackedLinear) -> None:
        self._packed = packed

    def create_weights(self, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("a packed layer is filled from the policy, never loaded")

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self._packed(x)
