"""What is refused before the first step: where nothing could be proved."""

import importlib.util
import shutil
import sysconfig
from pathlib import Path

from efficient_rollout.certificate import Machine
from efficient_rollout.errors import UnsupportedDeviceError

# In the order in which Triton looks for them.
_COMPILERS = ("gcc", "clang", "cc")


def machine_to_check() -> Machine:
    """Describe the GPU to be checked, with the versions installed here; CUDA is not started for it.

    Raises:
        UnsupportedVersionError: vLLM is not installed, or not one this package was tested with.
        UnsupportedDeviceError: There is no GPU, no Triton, or vLLM was built without CUDA.
    """
    require_compiler()
    from efficient_rollout.engine.checks import check_vllm_version
    from efficient_rollout.engine.environment import installed_vllm

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
    from efficient_rollout.engine.environment import this_machine

    return this_machine()


def machine_of_torch() -> Machine:
    """Describe the same of torch and Triton alone, which start CUDA in this process.

    Raises:
        UnsupportedDeviceError: There is no GPU that torch can use, no Triton, or no C compiler for it.
    """
    require_compiler()
    import torch

    if importlib.util.find_spec("triton") is None or not torch.cuda.is_available():
        raise UnsupportedDeviceError(
            f"torch {torch.__version__} finds no NVIDIA GPU here, or Triton is missing: run this where `nvidia-smi` "
            "lists a GPU, with a CUDA build of torch, which brings Triton"
        )
    major, minor = torch.cuda.get_device_capability()
    return Machine.of(gpu=torch.cuda.get_device_name(), capability=f"{major}.{minor}", driver="not asked for")


def require_compiler() -> None:
    """Raise UnsupportedDeviceError where Triton could compile nothing: it builds a part of each launch in C."""
    missing = [] if any(map(shutil.which, _COMPILERS)) else [f"a C compiler ({', '.join(_COMPILERS)})"]
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        missing.append(f"Python's C headers ({sysconfig.get_path('include')})")
    if missing:
        raise UnsupportedDeviceError(
            f"Triton compiles its kernels' launchers with {' and '.join(missing)}, and there is none here: install gcc "
            "and the headers, such as apt-get install gcc python3-dev"
        )
