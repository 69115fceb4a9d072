"""Names of flash-attn that OpenRLHF imports and most jobs do not call, where flash-attn is not installed."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

# `openrlhf.models.ring_attn_utils` imports these names at its top, for packed samples only. Goes when it does so where
# they are used. Any other module of flash_attn stays an ImportError, which OpenRLHF has fallbacks for.
_NAMES = {
    "flash_attn": (),
    "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
    "flash_attn.utils": (),
    "flash_attn.utils.distributed": ("all_gather",),
}


class _Names(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands last on `sys.meta_path`, so that a real flash_attn wins."""

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in _NAMES:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=name in ("flash_attn", "flash_attn.utils"))

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return types.ModuleType(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        for name in _NAMES[module.__name__]:
            setattr(module, name, _not_installed)


def _not_installed(*_args: Any, **_kwargs: Any) -> Any:
    raise NotImplementedError(
        "flash-attn is not installed: packed samples and ring attention cannot be used without it"
    )


def is_installed() -> bool:
    """Tell whether this process would import a real flash-attn."""
    spec = importlib.util.find_spec("flash_attn")
    return spec is not None and not isinstance(spec.loader, _Names)


def stand_in() -> None:
    """Let the names be imported where there are no others; a second call changes nothing."""
    if not any(isinstance(finder, _Names) for finder in sys.meta_path):
        sys.meta_path.append(_Names())
