"""A policy's configuration as an engine will have it, and whether such a policy can draft for itself."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from efficient_rollout.config import Settings
from efficient_rollout.drafter.schemes import require_taken
from efficient_rollout.engine.environment import device_type
from efficient_rollout.errors import InputFileError, UnsupportedModelError


def read_hf_config(model: str, folder: Path, options: Mapping[str, Any]) -> Any:
    """Read a policy's configuration as the engine will have it.

    Args:
        model: Directory of a checkpoint, or a name on the Hugging Face Hub.
        folder: Where its `config.json` is.
        options: The engine's, by vLLM's names; `trust_remote_code` and `hf_overrides` count.

    Raises:
        InputFileError: It cannot be read.
    """
    from transformers import AutoConfig

    trusts = bool(options.get("trust_remote_code"))
    # Code that a configuration names lies beside it, on the Hub too.
    source = model if trusts and not Path(model).expanduser().exists() else str(folder)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trusts)
    except (OSError, ValueError) as error:
        told = " ".join(str(error).split())
        raise InputFileError(f"cannot read the policy's configuration at {model}: {told}") from error
    overrides = options.get("hf_overrides") or {}
    if callable(overrides):
        return overrides(config)
    config.update(json.loads(overrides) if isinstance(overrides, str) else overrides)
    return config


def check_heads(config: Any, tensor_parallel_size: int) -> None:
    """Raise UnsupportedModelError where so many workers cannot share a policy's attention heads, none among them."""
    heads = getattr(config, "num_attention_heads", None)
    if tensor_parallel_size < 1:
        raise UnsupportedModelError(f"tensor_parallel_size={tensor_parallel_size} is no number of workers: 1 and up")
    if isinstance(heads, int) and heads % tensor_parallel_size:
        sizes = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
        raise UnsupportedModelError(
            f"tensor_parallel_size={tensor_parallel_size} does not divide the policy's {heads} attention heads; "
            f"use one of {sizes}"
        )


def check_widths(
    config: Any,
    settings: Settings,
    dtype: torch.dtype | None,
    tensor_parallel_size: int = 1,
    device: str | None = None,
) -> None:
    """Raise SchemeUnavailableError where the drafter's scheme takes no layer of a policy with such a configuration.

    It looks ahead, at the layers every dense decoder has; of a configuration that does not tell their widths nothing is
    said. Once the drafter is built, `require_quantized` says it for certain.

    Args:
        config: From transformers.
        settings: With drafting enabled.
        dtype: Of the engine; None where vLLM is to choose it.
        tensor_parallel_size: Workers that share every layer's outputs, or its inputs.
        device: As in `torch.device.type`; None: vLLM's own.
    """
    names = ("hidden_size", "intermediate_size", "num_attention_heads")
    hidden, inner, heads = sizes = [getattr(config, name, None) for name in names]
    if all(isinstance(size, int) for size in sizes):
        attention = heads * (getattr(config, "head_dim", None) or hidden // heads) // tensor_parallel_size
        inner //= tensor_parallel_size
        shapes = [(inner, hidden), (hidden, inner), (attention, hidden), (hidden, attention)]
        require_taken(settings.drafter, shapes, dtype, device or device_type())


def check_hf_config(config: Any, model: str) -> None:
    """Raise UnsupportedModelError for a policy that is not a dense, text-only, unquantized decoder."""
    fault = _model_fault(config)
    if fault is not None:
        raise UnsupportedModelError(
            f"the self-drafter cannot handle {model}: {fault}. Set efficient_rollout.enabled=false to roll out plainly."
        )


def _model_fault(config: Any) -> str | None:
    values = config.to_dict()
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if (values.get(key) or 0) > 1:
            return f"it is a mixture of experts ({key}={values[key]}), where reading quantized weights saves nothing"
    for key in ("vision_config", "audio_config", "thinker_config"):
        if values.get(key):
            return f"it is multimodal ({key} is set); only text-only policies are supported"
    if values.get("quantization_config"):
        method = values["quantization_config"].get("quant_method", "unknown method")
        return f"its weights are already quantized ({method}); the drafter needs the policy in 16 or 32 bits"
    if values.get("kv_lora_rank"):
        return f"it uses latent attention (kv_lora_rank={values['kv_lora_rank']})"
    if values.get("num_kv_shared_layers"):
        return f"layers of it share others' KV cache (num_kv_shared_layers={values['num_kv_shared_layers']})"
    if values.get("is_encoder_decoder"):
        return "it is an encoder-decoder model"
    odd_layers = set(values.get("layer_types") or []) - {"full_attention", "sliding_attention"}
    if odd_layers:
        return f"it has layers other than attention, full or in a sliding window ({', '.join(sorted(odd_layers))})"
    return None
