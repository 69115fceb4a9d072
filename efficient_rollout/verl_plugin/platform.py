"""The CPU as a veRL platform."""

import contextlib
import functools
import os
import types
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

PLATFORM_NAME = "cpu"


def is_cpu_build() -> bool:
    """Return False wherever torch was built for an accelerator, or an extension has brought one.

    A CPU-only node of a GPU cluster must go on calling itself what veRL calls it.
    """
    return torch.version.cuda is None and torch.version.hip is None and torch.accelerator.current_accelerator() is None


def cpu_is_chosen() -> bool:
    """Tell whether this process's veRL is to run on a CPU.

    veRL is not asked: its answer is final, and platforms of other plugins may not be registered yet.
    """
    override = os.environ.get("VERL_PLATFORM", "").strip().lower()  # veRL's own
    return override == PLATFORM_NAME if override else is_cpu_build()


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    """Do nothing: there is one device, nothing runs asynchronously, and there is no cache and no profiler."""


def _zero(*_args: Any, **_kwargs: Any) -> int:
    """Return 0: a CPU has no device memory of its own to account for."""
    return 0


def _main_memory(*_args: Any) -> tuple[int, int]:
    """Return free and total bytes."""
    import psutil

    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _device_module() -> types.ModuleType:
    """Return what answers for a CPU what veRL expects of `torch.<device>`: `torch.cpu`, and more."""
    module = types.ModuleType("efficient_rollout_torch_cpu")
    vars(module).update(
        __getattr__=functools.partial(getattr, torch.cpu),
        get_device_name=lambda *_: PLATFORM_NAME,
        mem_get_info=_main_memory,
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
        get_rng_state=lambda *_: torch.get_rng_state(),
        set_rng_state=lambda state, *_: torch.set_rng_state(state),
        **dict.fromkeys(("empty_cache", "ipc_collect", "reset_peak_memory_stats"), _nothing),
        **dict.fromkeys(("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"), _zero),
        current_device=_zero,
    )
    return module


@PlatformRegistry.register(platform=PLATFORM_NAME)
class CpuPlatform(PlatformBase):
    """Is chosen where torch has no accelerator build at all; `VERL_PLATFORM=cpu` forces it."""

    device_name = vendor_name = PLATFORM_NAME
    device_module = _device_module()
    manual_seed = manual_seed_all = staticmethod(torch.manual_seed)
    set_device = synchronize = set_allocator_settings = empty_cache = profiler_start = profiler_stop = cudart = _nothing

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return is_cpu_build()

    def current_device(self) -> Any:
        """Return the name: veRL hands this to `tensor.to()`, where an integer would mean `cuda:0`."""
        return PLATFORM_NAME

    def device_count(self) -> int:
        return 1

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str) -> Any:
        return contextlib.nullcontext()

    def ray_resource_name(self) -> str:
        """Return Ray's "GPU", as a logical slot: `ray_kwargs.ray_init.num_gpus` says how many."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        """Return False, which selects veRL's shared-memory weight transfer."""
        return False
