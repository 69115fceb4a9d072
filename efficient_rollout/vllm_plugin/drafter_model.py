"""Build the drafter: the policy's own architecture, sharing every module that is not quantized."""

import torch
from vllm.config import VllmConfig
from vllm.config.utils import replace
from vllm.model_executor.layers.attention.attention import Attention
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.vllm_plugin.tapped_target import HollowDrafterConfig, PackedMethod

DRAFTER_PREFIX = "draft_model"


def build_drafter(draft_config: VllmConfig, target: torch.nn.Module, packed: PackedWeights) -> torch.nn.Module:
    """A second instance of the policy's architecture that owns nothing but its attention layers and packed weights.

    Args:
        draft_config: The engine's config for the drafter; its quantization config is replaced.
        target: The loaded policy. Norms, embeddings, rotary tables and unquantized layers are *its* modules,
            so that a weight sync of the policy is theirs too.
        packed: Packed weights by the policy's layer names.
    """
    config = replace(draft_config, quant_config=HollowDrafterConfig())
    with set_default_torch_dtype(config.model_config.dtype), torch.device(config.device_config.device):
        drafter = initialize_model(config, prefix=DRAFTER_PREFIX)
    _link(drafter, target, packed, path="")
    return drafter.eval()


def _link(drafter: torch.nn.Module, target: torch.nn.Module, packed: PackedWeights, path: str) -> None:
    for name, child in list(drafter.named_children()):
        child_path = f"{path}.{name}" if path else name
        if isinstance(child, Attention):
            continue
        if child_path in packed.layers:
            child.quant_method = PackedMethod(packed.layers[child_path])
            # The packed layer adds its own copy of the bias.
            if getattr(child, "bias", None) is not None:
                child.bias = None
        elif any(isinstance(module, Attention) or p in packed.layers for p, module in _walk(child, child_path)):
            _link(child, target, packed, child_path)
        else:
            setattr(drafter, name, target.get_submodule(child_path))


def _walk(module: torch.nn.Module, path: str) -> list[tuple[str, torch.nn.Module]]:
    return [(f"{path}.{name}" if name else path, child) for name, child in module.named_modules()]
