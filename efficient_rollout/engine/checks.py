"""What engines of this package need of vLLM, of its device and of the policy, checked before any minute is spent."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from efficient_rollout.certificate import certificate_gap, require_certificate
from efficient_rollout.config import Settings
from efficient_rollout.drafter.schemes import make_scheme, require_taken
from efficient_rollout.engine.environment import device_type, installed_vllm, this_machine, waits_for_gpu
from efficient_rollout.errors import (
    ConfigError,
    InputFileError,
    UnsupportedDeviceError,
    UnsupportedModelError,
    UnsupportedVersionError,
)
from efficient_rollout.policy_config import find_policy_config
from efficient_rollout.upstream import check_version

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Backends of `weight_transfer_config`: vLLM's own, and veRL's.
_GPU_TRANSFERS = {"nccl", "ipc", "sparse_nccl", "sharded_rdt", "nccl_m2n", "modelexpress", "verl_delta_ipc"}
# Which of vLLM's model runners the self-drafter has, by type of device.
_RUNNERS = {"cpu": "V1", "cuda": "V2"}
# vLLM's options that decide whether an engine can draft -> the values with which it can.
_FITTING: dict[str, tuple[Any, ...]] = {
    "enable_lora": (None, False),
    "quantization": (None,),
    "enable_prompt_embeds": (None, False),
}
# vLLM's options that split an engine otherwise than by tensors.
_SPLITS = ("pipeline_parallel_size", "prefill_context_parallel_size", "decode_context_parallel_size")


def check_vllm_version() -> None:
    """Raise UnsupportedVersionError where the installed vLLM was not tested with this package."""
    check_version(*installed_vllm())


def check_device() -> None:
    """Raise UnsupportedDeviceError where vLLM was built for, or finds, neither a CPU nor an NVIDIA GPU."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() and not current_platform.is_cuda():
        # vLLM's name for a build whose device is not there is empty.
        device = current_platform.device_type or "a device that it does not find here"
        raise UnsupportedDeviceError(
            f"the installed vLLM runs on {device}; engines of this package run on CPUs and on NVIDIA GPUs. "
            "For a CPU, install 'efficient-rollout[cpu]' in an environment of its own; on another device, roll out "
            "with plain vLLM (rollout.name=vllm in a veRL job)."
        )


def check_build() -> None:
    """Check as `check_device` does, for a process whose engines are elsewhere: a build for GPUs needs none here."""
    if not waits_for_gpu():
        check_device()


def check_certificate(settings: Settings) -> None:
    """Check that engines may draft on this kind of GPU, as `gpu_certificate` says; do nothing on a CPU.

    Raises:
        UnsupportedDeviceError: There is no certificate for this machine, and the settings require one; or its check
            failed.
    """
    from vllm.platforms import current_platform

    if settings.enabled and current_platform.is_cuda():
        check = require_certificate if settings.gpu_certificate == "required" else certificate_gap
        check(this_machine(), settings.gpu_certificate_path)


def check_scheme(settings: Settings, device: str | None = None) -> None:
    """Raise SchemeUnavailableError where the drafter's scheme has no kernel on a device, vLLM's own where None."""
    if settings.enabled:
        from vllm.platforms import current_platform

        current_platform.import_kernels()
        # vLLM asks the driver's library: CUDA itself may not be started before an engine's processes are.
        found = current_platform.get_device_capability() if current_platform.is_cuda() else None
        capability = None if found is None else (found.major, found.minor)
        make_scheme(settings.drafter, device or device_type(), capability)


def check_gpu_settings(settings: Settings) -> None:
    """Raise ConfigError for settings that engines on a GPU do not have."""
    if settings.drafter.attention_window_tokens is not None:
        raise ConfigError("drafter.attention_window_tokens is for engines on a CPU: leave it out on a GPU")
    if settings.drafter.lookup == "group":
        raise ConfigError("drafter.lookup=group is for engines on a CPU: own or off on a GPU")
    if settings.verify_kernel == "native":
        raise ConfigError("verify_kernel=native is for engines on a CPU: leave it out on a GPU")


def check_model(
    model: str,
    settings: Settings,
    *,
    dtype: str = "auto",
    tensor_parallel_size: int = 1,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Check a policy, and the options of the engine that is to serve it, by vLLM's names.

    Args:
        model: Directory of a checkpoint, or a name on the Hugging Face Hub.
        settings: With `enabled=False` nothing but readability is asked of the policy.
        options: The engine's others, of which some say how the policy is read.

    Raises:
        InputFileError: It is missing or unreadable.
        UnsupportedModelError: The engine cannot be split so, or the self-drafter cannot handle the policy or an option;
            the message says why.
        SchemeUnavailableError: The drafter's scheme takes none of its layers.
    """
    options = options or {}
    if settings.enabled:
        check_options(options)
    file = find_policy_config(model)
    if not file.is_file():
        raise InputFileError(f"no policy at {model}: {file} does not exist or is not a file")
    config = _read_hf_config(model, file.parent, options)
    path = Path(model).expanduser()
    has_weights = any(path.glob("*.safetensors")) or any(path.glob("*.bin"))
    # Dummy weights are the first weight sync's to replace.
    if path.exists() and not has_weights and options.get("load_format") != "dummy":
        raise InputFileError(f"no weights at {model}: neither *.safetensors nor *.bin files are there")
    _check_heads(config, tensor_parallel_size)
    if settings.enabled:
        _check_architecture(config, model)
        check_widths(config, settings, getattr(torch, dtype, None), tensor_parallel_size)


def _read_hf_config(model: str, folder: Path, options: Mapping[str, Any]) -> Any:
    """Read a policy's configuration as the engine will have it."""
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


def _check_heads(config: Any, tensor_parallel_size: int) -> None:
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
    config: Any, settings: Settings, dtype: torch.dtype | None, tensor_parallel_size: int = 1, device: str | None = None
) -> None:
    """Raise SchemeUnavailableError where the drafter's scheme takes no layer of a policy with such a configuration.

    It looks ahead, at the layers every dense decoder has; of a configuration that does not tell their widths nothing is
    said. Once the drafter is built, `require_quantized` says it for certain.

    Args:
        config: From transformers.
        dtype: Of the engine; None where vLLM is to choose it.
        device: As in `torch.device.type`; None: vLLM's own.
    """
    names = ("hidden_size", "intermediate_size", "num_attention_heads")
    hidden, inner, heads = sizes = [getattr(config, name, None) for name in names]
    if all(isinstance(size, int) for size in sizes):
        attention = heads * (getattr(config, "head_dim", None) or hidden // heads) // tensor_parallel_size
        inner //= tensor_parallel_size
        shapes = [(inner, hidden), (hidden, inner), (attention, hidden), (hidden, attention)]
        require_taken(settings.drafter, shapes, dtype, device or device_type())


def _check_architecture(config: Any, model: str) -> None:
    """Raise UnsupportedModelError for a policy that is not a dense, text-only, unquantized decoder."""
    fault = _model_fault(config.to_dict())
    if fault is not None:
        raise UnsupportedModelError(
            f"the self-drafter cannot handle {model}: {fault}. Set efficient_rollout.enabled=false to roll out plainly."
        )


def _model_fault(values: Mapping[str, Any]) -> str | None:
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


def check_options(options: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError for an engine's options, by vLLM's names, beside which it cannot draft."""
    split = [f"{name}={options[name]}" for name in _SPLITS if (options.get(name) or 1) > 1]
    if split:
        raise UnsupportedModelError(
            f"self-drafting works in engines split by tensors alone, and this one has {', '.join(split)}: set it to 1 "
            "and tensor_parallel_size to the number of workers, or set efficient_rollout.enabled=false"
        )
    unfit = [f"{name}={options.get(name)}" for name, fitting in _FITTING.items() if options.get(name) not in fitting]
    if unfit:
        raise UnsupportedModelError(
            f"self-drafting does not work in an engine with {', '.join(unfit)}: leave it out, or set "
            "efficient_rollout.enabled=false to roll out plainly"
        )


def check_engine(vllm_config: "VllmConfig", settings: Settings) -> None:
    """Check a CPU engine's options once vLLM has resolved them.

    Raises:
        UnsupportedVersionError: vLLM, or the model runner it chose, is not one this package was tested with.
        UnsupportedDeviceError: It does not run on a CPU, or is to get new weights in a way that only GPUs have.
        UnsupportedModelError: The policy, or how the engine splits it, is out of reach of the self-drafter.
        SchemeUnavailableError: The drafter's scheme takes none of the policy's layers.
    """
    check_vllm_version()
    check_device()
    transfer = vllm_config.weight_transfer_config
    if transfer is not None and transfer.backend in _GPU_TRANSFERS:
        raise UnsupportedDeviceError(
            f"weight_transfer_config.backend={transfer.backend} moves weights between GPUs; this engine runs on a CPU. "
            "Leave weight_transfer_config out and call collective_rpc('reload_weights'), or load through "
            "efficient_rollout.engine.weights.sync.WeightSync in a worker extension."
        )
    if settings.enabled:
        check_drafting_engine(vllm_config, settings, "cpu")


def check_drafting_engine(vllm_config: "VllmConfig", settings: Settings, device: str) -> None:
    """Check what `check_engine` checks of an engine that drafts, on a type of device as in `torch.device.type`.

    Raises:
        ConfigError: A setting is for engines on another device.
        UnsupportedVersionError: vLLM chose another model runner than the self-drafter has on this device.
        UnsupportedModelError: As `check_engine`.
        SchemeUnavailableError: As `check_engine`.
    """
    runner, wanted = "V2" if vllm_config.use_v2_model_runner else "V1", _RUNNERS[device]
    if runner != wanted:
        raise UnsupportedVersionError(
            f"this engine uses vLLM's {runner} model runner, and the self-drafter runs on {wanted} on this device. "
            "Leave VLLM_USE_V2_MODEL_RUNNER unset and take the engine's arguments from engine_args, which chooses; an "
            f"engine that is started otherwise needs VLLM_USE_V2_MODEL_RUNNER={int(wanted == 'V2')}"
        )
    if device == "cuda":
        check_gpu_settings(settings)
    model, parallel, speculative = vllm_config.model_config, vllm_config.parallel_config, vllm_config.speculative_config
    _check_architecture(model.hf_config, model.model)
    resolved = {
        "enable_lora": vllm_config.lora_config is not None,
        "quantization": model.quantization,
        "enable_prompt_embeds": model.enable_prompt_embeds,
    }
    check_options(resolved | {name: getattr(parallel, name, 1) for name in _SPLITS})
    check_widths(model.hf_config, settings, model.dtype, parallel.tensor_parallel_size, device)
    if speculative is None or not speculative.uses_draft_model():
        raise UnsupportedModelError(
            "efficient_rollout is enabled but the engine has no speculative_config with method 'draft_model'; "
            "take the arguments from efficient_rollout.engine.engine_args.engine_args"
        )
