"""What is refused before the first step: where nothing could be proved."""

import importlib.util

from efficient_rollout.certificate import Machine
from efficient_rollout.errors import UnsupportedDeviceError


def machine_to_check() -> Machine:
    """The GPU to be checked, with the versions installed here; CUDA is not started for it.

    Raises:
        UnsupportedVersionError: vLLM is not installed, or not one this package was tested with.
        UnsupportedDeviceError: There is no GPU, no Triton, or vLLM was built without CUDA.
    """
    from efficient_rollout.engine.checks import check_vllm_version
    from efficient_rollout.engine.installed import installed_vllm

    name, version = installed_vllm()
    if name != "vllm":
        raise UnsupportedDeviceError(
            f"{name} {version} is a build for CPUs: on a machine with a GPU, in an environment of its own, "
            "pip install 'efficient-rollout[gpu]'"
        )
    check_vllm_version()
    if importlib.util.find_spec("triton") is None:
        raise UnsupportedDeviceError("Triton is not installed; a CUDA build of torch brings it: reinstall torch")
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        raise UnsupportedDeviceError(
            "vLLM finds no NVIDIA GPU here: run this where `nvidia-smi` lists one, outside containers without --gpus; "
            "with a GPU listed, the installed vLLM was built without CUDA: install another build"
        )
    from efficient_rollout.engine.machine import this_machine

    return this_machine()
