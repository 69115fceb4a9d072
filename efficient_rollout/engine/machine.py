"""Which GPU this is."""

from vllm.platforms import current_platform
from vllm.utils.import_utils import import_pynvml

from efficient_rollout.certificate import Machine

_UNKNOWN = "unknown"


def this_machine() -> Machine:
    """Describe this environment on the first GPU that this process may use.

    CUDA itself is not started for it.
    """
    capability = current_platform.get_device_capability()
    return Machine.of(
        gpu=current_platform.get_device_name(),
        capability=_UNKNOWN if capability is None else capability.as_version_str(),
        driver=_driver_version(),
    )


def _driver_version() -> str:
    pynvml = import_pynvml()
    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:  # machines whose GPU that library does not manage, Jetson for one
        return _UNKNOWN
