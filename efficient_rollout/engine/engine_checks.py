"""An engine's options once vLLM has resolved them: whether the self-drafter can work with them."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from efficient_rollout.config import Settings
from efficient_rollout.engine.compat import check_device, check_vllm_symbols, check_vllm_version
from efficient_rollout.engine.model_checks import check_hf_config, check_widths
from efficient_rollout.errors import UnsupportedDeviceError, UnsupportedModelError, UnsupportedVersionError

if TYPE_CHECKING:
    from vllm.config import ParallelConfig, VllmConfig

# Backends of `weight_transfer_config`: vLLM's own, and veRL's.
_GPU_TRANSFERS = {"nccl", "ipc", "sparse_nccl", "sharded_rdt", "nccl_m2n", "modelexpress", "verl_delta_ipc"}
# Which of vLLM's model runners the self-drafter has, by type of device.
_RUNNERS = {"cpu": "V1", "cuda": "V2"}


def _check_weight_transfer(config: Any) -> None:
    if config is not None and config.backend in _GPU_TRANSFERS:
        raise UnsupportedDeviceError(
            f"weight_transfer_config.backend={config.backend} moves weights between GPUs; this engine runs on a CPU. "
            "Leave weight_transfer_config out and call collective_rpc('reload_weights'), or load through "
            "efficient_rollout.engine.weights.sync.WeightSync in a worker extension."
        )


def check_split(parallel: "ParallelConfig") -> None:
    """Raise UnsupportedModelError where an engine is split over workers in another way than by tensors."""
    sizes = {
        name: getattr(parallel, name, 1)
        for name in ("pipeline_parallel_size", "prefill_context_parallel_size", "decode_context_parallel_size")
    }
    split = [f"{name}={size}" for name, size in sizes.items() if size > 1]
    if split:
        raise UnsupportedModelError(
            f"self-drafting works in engines split by tensors alone, and this one has {', '.join(split)}: set it to 1 "
            "and tensor_parallel_size to the number of workers, or set efficient_rollout.enabled=false"
        )


def check_engine(vllm_config: "VllmConfig", settings: Settings) -> None:
    """Check an engine's options once vLLM has resolved them.

    Raises:
        UnsupportedVersionError: vLLM, or the model runner it chose, is not one this package was tested with, or lacks
            a name.
        UnsupportedDeviceError: It does not run on a CPU, or is to get new weights in a way that only GPUs have.
        UnsupportedModelError: The policy, or how the engine splits it, is out of reach of the self-drafter.
        SchemeUnavailableError: The drafter's scheme takes none of the policy's layers.
    """
    check_vllm_version()
    check_device()
    check_vllm_symbols()
    _check_weight_transfer(vllm_config.weight_transfer_config)
    if settings.enabled:
        check_drafting_engine(vllm_config, settings)


def _check_runner(vllm_config: "VllmConfig", device: str) -> None:
    runner = "V2" if vllm_config.use_v2_model_runner else "V1"
    wanted = _RUNNERS[device]
    if runner != wanted:
        raise UnsupportedVersionError(
            f"this engine uses vLLM's {runner} model runner, and the self-drafter runs on {wanted} on this device. "
            "Leave VLLM_USE_V2_MODEL_RUNNER unset and take the engine's arguments from engine_args, which chooses; an "
            f"engine that is started otherwise needs VLLM_USE_V2_MODEL_RUNNER={int(wanted == 'V2')}"
        )


def check_drafting_engine(vllm_config: "VllmConfig", settings: Settings, device: str = "cpu") -> None:
    """What `check_engine` checks of an engine that drafts.

    Args:
        vllm_config: The engine's.
        settings: With drafting enabled.
        device: As in `torch.device.type`.

    Raises:
        UnsupportedVersionError: vLLM chose another model runner than the self-drafter has on this device.
        UnsupportedModelError: See `check_engine`.
        SchemeUnavailableError: See `check_engine`.
    """
    _check_runner(vllm_config, device)
    check_hf_config(vllm_config.model_config.hf_config, vllm_config.model_config.model)
    check_split(vllm_config.parallel_config)
    check_options(_resolved_options(vllm_config))
    check_widths(
        vllm_config.model_config.hf_config,
        settings,
        vllm_config.model_config.dtype,
        vllm_config.parallel_config.tensor_parallel_size,
        device,
    )
    if vllm_config.lora_config is not None:
        raise UnsupportedModelError("self-drafting does not support LoRA adapters in the engine")
    speculative = vllm_config.speculative_config
    if speculative is None or not speculative.uses_draft_model():
        raise UnsupportedModelError(
            "efficient_rollout is enabled but the engine has no speculative_config with method 'draft_model'; "
            "take the arguments from efficient_rollout.engine.engine_args.engine_args"
        )


# vLLM's options that decide whether an engine can draft -> the values with which it can.
_FITTING: dict[str, tuple[Any, ...]] = {
    "enable_lora": (None, False),
    "quantization": (None,),
    "enable_prompt_embeds": (None, False),
}


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse an engine's options beside which it cannot draft.

    Args:
        options: By vLLM's names; unknown ones, and those beside which drafting works, are left to vLLM.

    Raises:
        UnsupportedModelError: Lists those that do not fit.
    """
    check_split(SimpleNamespace(**{name: value or 1 for name, value in options.items()}))
    unfit = [f"{name}={options.get(name)}" for name, fitting in _FITTING.items() if options.get(name) not in fitting]
    if unfit:
        raise UnsupportedModelError(
            f"self-drafting does not work in an engine with {', '.join(unfit)}: leave it out, or set "
            "efficient_rollout.enabled=false to roll out plainly"
        )


def _resolved_options(vllm_config: "VllmConfig") -> dict[str, Any]:
    """Those of an engine that was started with arguments of the user's own, as vLLM has resolved them."""
    return {
        "quantization": vllm_config.model_config.quantization,
        "enable_prompt_embeds": vllm_config.model_config.enable_prompt_embeds,
    }
