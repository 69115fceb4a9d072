"""What engines of this package need of vLLM, of its device and of the policy, checked before any minute is spent."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from efficient_rollout.certificate import certificate_gap, require_certificate
from efficient_rollout.config import Settings
from efficient_rollout.drafter.schemes import make_scheme
from efficient_rollout.engine.environment import device_type, installed_vllm, this_machine, waits_for_gpu
from efficient_rollout.engine.policy import check_heads, check_hf_config, check_widths, read_hf_config
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
    """Check as `check_device` does, for a process that starts no engine.

    The device may be other machines'.

    Raises:
        UnsupportedDeviceError: Neither vLLM's device is here, nor is this a build for NVIDIA GPUs.
    """
    if not waits_for_gpu():
        check_device()


def check_certificate(settings: Settings) -> None:
    """Check that engines may draft on this kind of GPU, as `gpu_certificate` says; do nothing on a CPU.

    Raises:
        UnsupportedDeviceError: There is no certificate for this kind of machine, and the settings require one; or its
            check failed.
    """
    from vllm.platforms import current_platform

    if settings.enabled and current_platform.is_cuda():
        check = require_certificate if settings.gpu_certificate == "required" else certificate_gap
        check(this_machine(), settings.gpu_certificate_path)


def check_scheme(settings: Settings, device: str | None = None) -> None:
    """Raise SchemeUnavailableError where the drafter's scheme has no kernel on this device.

    Args:
        settings: The whole tree.
        device: As in `torch.device.type`; None: vLLM's own.
    """
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
    """Check a policy.

    Args:
        model: Directory of a checkpoint, or a name on the Hugging Face Hub.
        settings: With `enabled=False` nothing but readability is asked of the policy.
        dtype: Of the engine, as vLLM's option.
        tensor_parallel_size: Of the engine.
        options: The engine's others, by vLLM's names, of which some say how the policy is read.

    Raises:
        InputFileError: It is missing or unreadable.
        UnsupportedModelError: The engine cannot be split so, or the self-drafter cannot handle the policy; the message
            says why.
        SchemeUnavailableError: The drafter's scheme takes none of its layers.
    """
    options = options or {}
    file = find_policy_config(model)
    if not file.is_file():
        raise InputFileError(f"no policy at {model}: {file} does not exist or is not a file")
    config = read_hf_config(model, file.parent, options)
    path = Path(model).expanduser()
    has_weights = any(path.glob("*.safetensors")) or any(path.glob("*.bin"))
    # Dummy weights are the first weight sync's to replace.
    if path.exists() and not has_weights and options.get("load_format") != "dummy":
        raise InputFileError(f"no weights at {model}: neither *.safetensors nor *.bin files are there")
    check_heads(config, tensor_parallel_size)
    if settings.enabled:
        check_hf_config(config, model)
        check_widths(config, settings, getattr(torch, dtype, None), tensor_parallel_size)


def check_engine(vllm_config: "VllmConfig", settings: Settings) -> None:
    """Check an engine's options once vLLM has resolved them.

    Raises:
        UnsupportedVersionError: vLLM, or the model runner it chose, is not one this package was tested with.
        UnsupportedDeviceError: It does not run on a CPU, or is to get new weights in a way that only GPUs have.
        UnsupportedModelError: The policy, or how the engine splits it, is out of reach of the self-drafter.
        SchemeUnavailableError: The drafter's scheme takes none of the policy's layers.
    """
    check_vllm_version()
    check_device()
    _check_weight_transfer(vllm_config.weight_transfer_config)
    if settings.enabled:
        check_drafting_engine(vllm_config, settings)


def check_drafting_engine(vllm_config: "VllmConfig", settings: Settings, device: str = "cpu") -> None:
    """Check what `check_engine` checks of an engine that drafts.

    Args:
        vllm_config: The engine's.
        settings: With drafting enabled.
        device: As in `torch.device.type`.

    Raises:
        ConfigError: A setting is for engines on another device.
        UnsupportedVersionError: vLLM chose another model runner than the self-drafter has on this device.
        UnsupportedModelError: See `check_engine`.
        SchemeUnavailableError: See `check_engine`.
    """
    _check_runner(vllm_config, device)
    if device == "cuda":
        check_gpu_settings(settings)
    check_hf_config(vllm_config.model_config.hf_config, vllm_config.model_config.model)
    check_options(_resolved_options(vllm_config))
    check_widths(
        vllm_config.model_config.hf_config,
        settings,
        vllm_config.model_config.dtype,
        vllm_config.parallel_config.tensor_parallel_size,
        device,
    )
    speculative = vllm_config.speculative_config
    if speculative is None or not speculative.uses_draft_model():
        raise UnsupportedModelError(
            "efficient_rollout is enabled but the engine has no speculative_config with method 'draft_model'; "
            "take the arguments from efficient_rollout.engine.engine_args.engine_args"
        )


def _check_runner(vllm_config: "VllmConfig", device: str) -> None:
    runner = "V2" if vllm_config.use_v2_model_runner else "V1"
    wanted = _RUNNERS[device]
    if runner != wanted:
        raise UnsupportedVersionError(
            f"this engine uses vLLM's {runner} model runner, and the self-drafter runs on {wanted} on this device. "
            "Leave VLLM_USE_V2_MODEL_RUNNER unset and take the engine's arguments from engine_args, which chooses; an "
            f"engine that is started otherwise needs VLLM_USE_V2_MODEL_RUNNER={int(wanted == 'V2')}"
        )


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse an engine's options beside which it cannot draft.

    Args:
        options: By vLLM's names; unknown ones, and those beside which drafting works, are left to vLLM.

    Raises:
        UnsupportedModelError: Lists those that do not fit: other ways to split an engine than by tensors, or others.
    """
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


def _resolved_options(vllm_config: "VllmConfig") -> dict[str, Any]:
    """Return the options of an engine that was started with arguments of the user's own.

    They are as vLLM has resolved them.
    """
    return {
        "enable_lora": vllm_config.lora_config is not None,
        "quantization": vllm_config.model_config.quantization,
        "enable_prompt_embeds": vllm_config.model_config.enable_prompt_embeds,
        **{name: getattr(vllm_config.parallel_config, name, 1) for name in _SPLITS},
    }


def _check_weight_transfer(config: Any) -> None:
    if config is not None and config.backend in _GPU_TRANSFERS:
        raise UnsupportedDeviceError(
            f"weight_transfer_config.backend={config.backend} moves weights between GPUs; this engine runs on a CPU. "
            "Leave weight_transfer_config out and call collective_rpc('reload_weights'), or load through "
            "efficient_rollout.engine.weights.sync.WeightSync in a worker extension."
        )
