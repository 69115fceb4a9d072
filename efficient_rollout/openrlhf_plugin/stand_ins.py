"""What the machine of a job's process lacks, stood in for: to be imported before anything of OpenRLHF's.

Some of it imports GPU packages, and takes functions out of modules.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from efficient_rollout.engine.installed import device_type

# `openrlhf.models.ring_attn_utils` imports these names of flash-attn at its top, for packed samples only. Goes when it
# does so where they are used. Any other module of it stays an ImportError, which OpenRLHF has fallbacks for.
_FLASH_ATTENTION: dict[str, tuple[str, ...]] = {
    "flash_attn": (),
    "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
    "flash_attn.utils": (),
    "flash_attn.utils.distributed": ("all_gather",),
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


if not has_flash_attention():
    _stand_in_for_flash_attention()
IS_ON_CPU = device_type() == "cpu"
if IS_ON_CPU:
    from efficient_rollout.openrlhf_plugin import cpu

    cpu.install()
