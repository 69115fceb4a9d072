"""Build the drafter: the policy's own architecture, sharing every module that is not quantized."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.config.utils import replace
from vllm.model_executor.layers.attention.attention import Attention
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.engine.graph_cache import packed_facts, with_graph_of
from efficient_rollout.engine.tapped_target import HollowDrafterConfig, PackedMethod, packed_twin
from efficient_rollout.errors import SchemeUnavailableError, UnsupportedModelError

# Of the drafter's attention layers among the engine's, before the name of the policy's layer.
DRAFTER_PREFIX = "draft_model"


@dataclass(frozen=True, slots=True)
class Drafter:
    """Holds a drafter as it was built.

    Attributes:
        model: The module.
        twins: The policy's attention layer of each of the drafter's, by the name the drafter's has in the engine.
    """

    model: torch.nn.Module
    twins: dict[str, Attention]


def build_drafter(draft_config: VllmConfig, target: torch.nn.Module, packed: PackedWeights) -> Drafter:
    """Build a second instance of the policy's architecture.

    It owns nothing but its attention layers and packed weights.

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
    fault = packed.take_report().fault
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
    return Drafter(drafter.eval(), _register(layers, config.compilation_config.static_forward_context))


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
    """Rename the drafter's attention layers, and make them known to the engine, whose code finds layers by name.

    Args:
        built: The drafter's layers, by the names they were built with.
        engines_layers: The policy's, by theirs; the drafter's are added.
    """
    odd = sorted(built.keys() ^ engines_layers.keys()) or [
        name for name, layer in engines_layers.items() if not _is_plain(layer)
    ]
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
    if not isinstance(layer, Attention) or layer.kv_sharing_target_layer_name is not None:
        return False
    return not getattr(layer, "has_sink", False)


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
