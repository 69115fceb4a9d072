"""What the machine of a job's process lacks, stood in for: to be imported before anything of OpenRLHF's.

Names of flash-attn, where it is not installed. Without a GPU, where tensors lie, and which collective carries them;
loss, optimizer, sampling, reward and the order of calls stay OpenRLHF's own. All of that goes when OpenRLHF asks for a
device instead of naming CUDA; each entry says when it goes before that.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from efficient_rollout.engine.environment import device_type
from efficient_rollout.errors import UnsupportedDeviceError
from efficient_rollout.patching import Patch, apply_patches

# `openrlhf.models.ring_attn_utils` imports these names of flash-attn at its top, for packed samples only. Goes when it
# does so where they are used. Any other module of it stays an ImportError, which OpenRLHF has fallbacks for.
_FLASH_ATTENTION: dict[str, tuple[str, ...]] = {
    "flash_attn": (),
    "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
    "flash_attn.utils": (),
    "flash_attn.utils.distributed": ("all_gather",),
}

# Called by OpenRLHF without asking whether CUDA is there; `torch.cuda.is_available()` stays False, so that no other
# library notices. The device goes into `Tensor.to` and `device=`, where a number would mean a GPU.
_CUDA_CALLS: Mapping[str, Callable[..., Any]] = {
    "set_device": lambda *_: None,
    "synchronize": lambda *_: None,
    "empty_cache": lambda: None,
    "current_stream": lambda *_: None,
    "current_device": lambda: "cpu",
}


def _not_installed(*_args: Any, **_kwargs: Any) -> Any:
    raise NotImplementedError(
        "flash-attn is not installed: packed samples and ring attention cannot be used without it"
    )


def has_flash_attention() -> bool:
    """Tell whether this process would import a real flash-attn."""
    spec = importlib.util.find_spec("flash_attn")
    return spec is not None and spec.loader is not None


def _stand_in_for_flash_attention() -> None:
    for name, functions in _FLASH_ATTENTION.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, loader=None, is_package=True)
        module.__path__ = []
        vars(module).update(dict.fromkeys(functions, _not_installed))
        sys.modules[name] = module


def _gloo_group(_original: Callable[..., Any]) -> Callable[..., Any]:
    from efficient_rollout.engine.weights.gloo_group import GlooGroup

    return lambda host, port, rank, world_size, _device: GlooGroup(host, port, rank, world_size)


def _buffer_on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        ours, torch.cuda.current_device = torch.cuda.current_device, lambda: 0
        try:
            original(self, *args, **kwargs)
        finally:
            torch.cuda.current_device = ours
        self.target_device = torch.device("cpu")

    return __init__


def _torch_adam(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_train_ds_config(*args: Any, optim_config: Any = None, **kwargs: Any) -> Any:
        if optim_config is not None:
            optim_config = {**optim_config, "params": {**optim_config["params"], "torch_adam": True}}
        return original(*args, optim_config=optim_config, **kwargs)

    return get_train_ds_config


def _with_float32(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda param_dtype: torch.float32 if param_dtype == "fp32" else original(param_dtype)


_TESTED = "openrlhf 0.11.2"
PATCHES = (
    Patch(
        name="openrlhf-gloo-weight-sync",
        target="openrlhf.utils.distributed_util:stateless_init_process_group",
        make_replacement=_gloo_group,
        reason="Weights go through NCCL, whose communicator disables itself without a word where there is none: the "
        "engine would load memory that nothing wrote. A gloo group of the same form carries them.",
        tested_versions=_TESTED,
        source_sha256=frozenset({"0f4de7e6719a99226fee197e96b7aef206eeafd5ebf617bce825fca70ad54ea7"}),
        remove_when="OpenRLHF's weight sync takes a backend that runs on a CPU.",
    ),
    Patch(
        name="openrlhf-replay-buffer-device",
        target="openrlhf.trainer.ppo_utils.replay_buffer:NaiveReplayBuffer.__init__",
        make_replacement=_buffer_on_cpu,
        reason="Formats the current device into `cuda:...`. The device it keeps is used in `sample` only, which "
        "nothing calls.",
        tested_versions=_TESTED,
        source_sha256=frozenset({"ee37108b4b5d9b91cf8f055274cc49fe1fadd6c9a91933869ce207870fa4f060"}),
        remove_when="The buffer takes the device that it is given.",
    ),
    Patch(
        name="openrlhf-torch-adam",
        target="openrlhf.utils.deepspeed.deepspeed:get_train_ds_config",
        make_replacement=_torch_adam,
        reason="DeepSpeed compiles its fused Adam, for minutes, when a job starts; its own option `torch_adam` "
        "computes the same update with torch's.",
        tested_versions=_TESTED,
        source_sha256=frozenset({"2e79fbb11ad675024037ccfe982689998cc90655ec5c9c1bf8315726f020a45e"}),
        remove_when="OpenRLHF lets a user pass DeepSpeed's options.",
    ),
    Patch(
        name="openrlhf-float32",
        target="openrlhf.utils.utils:convert_to_torch_dtype",
        make_replacement=_with_float32,
        reason="--ds.param_dtype knows bf16 and fp16 only, in which most processors train several times slower.",
        tested_versions=_TESTED,
        source_sha256=frozenset({"9c59d2aa51330089e4956072489c1fe2ff429e49b0dde7a70006e5acc406719e"}),
        remove_when="--ds.param_dtype takes fp32.",
    ),
)


def _stand_in_for_gpu() -> None:
    if torch.cuda.is_available():  # nothing may be stood in for there
        raise UnsupportedDeviceError(
            "there is a GPU here, but the installed vLLM runs on a CPU: hide the GPU with CUDA_VISIBLE_DEVICES='', or "
            "install a vLLM for GPUs: pip install -r requirements/openrlhf_gpu.txt"
        )
    os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed's own
    for name, stand_in in _CUDA_CALLS.items():
        setattr(torch.cuda, name, stand_in)
    import deepspeed.ops

    # Else DeepSpeed compiles a shared-memory collective when it starts. Without it, gloo: the same results.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    apply_patches(PATCHES)


if not has_flash_attention():
    _stand_in_for_flash_attention()
IS_ON_CPU = device_type() == "cpu"
if IS_ON_CPU:
    _stand_in_for_gpu()
