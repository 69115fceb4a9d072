"""Build the drafter: the policy's own architecture, sharing every module that is not quantized.

What of the policy it reads quantized is counted when it is built, and said where it is not what was asked.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.config.utils import replace
from vllm.model_executor.layers.attention.attention import Attention
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.schemes import require_taken
from efficient_rollout.engine.graph_cache import packed_facts, with_graph_of
from efficient_rollout.engine.tapped_target import HollowDrafterConfig, PackedMethod, packed_twin
from efficient_rollout.errors import SchemeUnavailableError, UnsupportedModelError

logger = logging.getLogger(__name__)

# Of the drafter's attention layers among the engine's, before the name of the policy's layer.
DRAFTER_PREFIX = "draft_model"
_LAYERS_NAMED = 5


@dataclass(frozen=True, slots=True)
class LinkedLayer:
    """Describes one matrix of the drafter.

    Attributes:
        shape: Of the policy's weight on this rank: outputs, inputs.
        is_packed: Computed with quantized weights; else it is the policy's own.
    """

    name: str
    shape: tuple[int, int]
    is_packed: bool
    is_head: bool


@dataclass(frozen=True, slots=True)
class LinkReport:
    """Lists every matrix that a draft step reads."""

    layers: tuple[LinkedLayer, ...]

    @property
    def num_packed(self) -> int:
        """Return the number of layers computed with quantized weights."""
        return sum(layer.is_packed for layer in self.layers)

    @property
    def num_unquantized(self) -> int:
        """Return the number of layers that are the policy's own."""
        return len(self.layers) - self.num_packed

    @property
    def packed_weight_share(self) -> float:
        """Return the share of a draft step's weights, by number, that it reads quantized."""
        num_packed = sum(math.prod(layer.shape) for layer in self.layers if layer.is_packed)
        return num_packed / sum(math.prod(layer.shape) for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Drafter:
    """Holds a drafter as it was built.

    Attributes:
        twins: The policy's attention layer of each of the drafter's, by the name the drafter's has in the engine.
    """

    model: torch.nn.Module
    twins: dict[str, Attention]
    links: LinkReport


def build_drafter(draft_config: VllmConfig, target: torch.nn.Module, packed: PackedWeights) -> Drafter:
    """Build a second instance of the policy's architecture, which owns but its attention layers and packed weights.

    It is built as the policy was, prefix and all, so that its attention layers call themselves what the policy's do.
    Architectures use as much of a prefix as they like; a name from elsewhere may not be unique.

    Args:
        draft_config: The engine's config for the drafter; its quantization config is replaced.
        target: The loaded policy. Norms, embeddings, rotary tables and unquantized layers are *its* modules,
            so that a weight sync of the policy is theirs too.
        packed: Packed weights, which the policy's layers lead to.

    Raises:
        SchemeUnavailableError: A layer of the policy could not be quantized.
        UnsupportedModelError: The attention layers cannot be told apart or paired with the policy's.
    """
    _, fault = packed.take_report()
    if fault is not None:
        raise SchemeUnavailableError(f"the drafter cannot be built: {fault}")
    graph = with_graph_of(draft_config, "drafter", packed_facts(packed))
    config = replace(draft_config, quant_config=HollowDrafterConfig(), additional_config=graph)
    with (
        _unregistered(config) as layers,
        set_default_torch_dtype(config.model_config.dtype),
        torch.device(config.device_config.device),
    ):
        drafter = initialize_model(config)
    _link(drafter, target, packed)
    twins = _register(layers, config.compilation_config.static_forward_context)
    return Drafter(drafter.eval(), twins, link_report(drafter))


@contextmanager
def sharing_kv_cache(layers: Mapping[str, Any], twins: Mapping[str, Attention]) -> Iterator[None]:
    """Have the drafter's layers name the policy's while vLLM collects what to allocate, allocates or binds.

    Nothing is allocated for them, and they get the policy's cache. It lasts no longer than that: a layer that names
    another's cache writes no KV, and code compiled from it, which a GPU's worker does before there is a cache, never
    would. `layers` are all of the engine's, by name.
    """
    for name, twin in twins.items():
        layers[name].kv_sharing_target_layer_name = twin.layer_name
    try:
        yield
    finally:
        for name in twins:
            layers[name].kv_sharing_target_layer_name = None


@contextmanager
def _unregistered(config: VllmConfig) -> Iterator[dict[str, Any]]:
    """Have attention layers built inside register in the dictionary this gives, not among the engine's."""
    compilation = config.compilation_config
    engines_layers, built = compilation.static_forward_context, {}
    compilation.static_forward_context = built
    try:
        yield built
    finally:
        compilation.static_forward_context = engines_layers


def _register(built: dict[str, Any], engines_layers: dict[str, Any]) -> dict[str, Attention]:
    """Rename the drafter's attention layers, and add them to the engine's, whose code finds layers by name."""
    odd = sorted(built.keys() ^ engines_layers.keys())
    odd = odd or [name for name, layer in engines_layers.items() if not _is_plain(layer)]
    sizes = {(layer.num_kv_heads, layer.head_size) for layer in engines_layers.values() if isinstance(layer, Attention)}
    if odd or len(sizes) > 1:
        fault = f"such as {odd[0]}" if odd else f"whose KV caches differ in heads and head size: {sorted(sizes)}"
        raise UnsupportedModelError(
            f"the self-drafter cannot handle a policy with attention layers {fault}. "
            f"Set efficient_rollout.enabled=false to roll out plainly."
        )
    twins = {f"{DRAFTER_PREFIX}.{name}": engines_layers[name] for name in built}
    for name, layer in built.items():
        layer.layer_name = f"{DRAFTER_PREFIX}.{name}"
        engines_layers[layer.layer_name] = layer
    return twins


def _is_plain(layer: Any) -> bool:
    """Tell whether a layer attends with nothing but its own queries, keys and values."""
    is_alone = isinstance(layer, Attention) and layer.kv_sharing_target_layer_name is None
    return is_alone and not getattr(layer, "has_sink", False)


def _link(drafter: torch.nn.Module, target: torch.nn.Module, packed: PackedWeights) -> None:
    """Put the policy's modules and packed layers into a drafter's module that is left with attention layers."""
    drafter._parameters.update(target._parameters)
    drafter._buffers.update(target._buffers)
    for name, child in list(drafter._modules.items()):
        twin = target._modules[name]
        if twin is None or isinstance(child, Attention):
            continue
        packed_layer = packed_twin(twin, packed)
        if packed_layer is not None:
            child.quant_method = PackedMethod(packed_layer)
            # The packed layer adds its own copy of the bias.
            if getattr(child, "bias", None) is not None:
                child.bias = None
        elif any(isinstance(module, Attention) or packed_twin(module, packed) for module in twin.modules()):
            _link(child, twin, packed)
        else:
            setattr(drafter, name, twin)


def link_report(drafter: torch.nn.Module) -> LinkReport:
    """Look at a linked drafter's modules."""
    modules = dict(drafter.named_modules())
    # A policy without a head of its own computes logits with its embedding.
    has_head = any(isinstance(module, ParallelLMHead) for module in modules.values())
    head = ParallelLMHead if has_head else VocabParallelEmbedding
    return LinkReport(
        tuple(
            LinkedLayer(name, _shape(module), isinstance(module.quant_method, PackedMethod), isinstance(module, head))
            for name, module in modules.items()
            if isinstance(module, LinearBase | head)
        )
    )


def _shape(layer: torch.nn.Module) -> tuple[int, int]:
    # The weight itself is no guide: on a CPU vLLM repacks it, and drops the original.
    if isinstance(layer, VocabParallelEmbedding):
        return layer.num_embeddings_per_partition, layer.embedding_dim
    outputs = getattr(layer, "output_size_per_partition", layer.output_size)
    return outputs, getattr(layer, "input_size_per_partition", layer.input_size)


def require_quantized(report: LinkReport, settings: DrafterSettings, dtype: torch.dtype) -> None:
    """Raise SchemeUnavailableError for a drafter that is the policy itself, unasked; warn of one that is so in part."""
    wanted = [layer for layer in report.layers if settings.quantize_output_head or not layer.is_head]
    left = [layer for layer in wanted if not layer.is_packed]
    if settings.scheme == "unquantized" or not left:
        return
    require_taken(settings, [layer.shape for layer in wanted], dtype)
    names = ", ".join(f"{layer.name} ({layer.shape[0]} x {layer.shape[1]})" for layer in left[:_LAYERS_NAMED])
    names += ", ..." if len(left) > _LAYERS_NAMED else ""
    if len(left) == len(wanted):
        raise SchemeUnavailableError(
            f"drafter.scheme={settings.scheme} quantized no layer of this policy ({names}), though it takes some of "
            f"these shapes in {dtype}: vLLM builds them where the drafter cannot see their weights. Set "
            f"efficient_rollout.enabled=false, or report the policy's architecture."
        )
    logger.warning(
        "drafter.scheme=%s quantizes only %.0f %% of the weights a draft step reads; %d of %d layers are the policy's "
        "own, at its price: %s",
        settings.scheme, 100.0 * report.packed_weight_share, len(left), len(wanted), names,
    )  # fmt: skip
