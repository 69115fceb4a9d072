"""A policy's configuration as an engine will have it, and whether such a policy can draft for itself."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efficient_rollout.errors import InputFileError


def read_hf_config(model: str, folder: Path, options: Mapping[str, Any]) -> Any:
    """A policy's configuration as the engine will have it.

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


def model_fault(config: Any) -> str | None:
    """Say why the self-drafter cannot draft for a policy with this configuration; None where it can."""
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
