"""What this package needs of another one: a version that its own metadata names, and names inside it."""

import dis
import functools
import importlib
import importlib.metadata
import inspect
from collections.abc import Iterable
from types import CodeType
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from efficient_rollout.errors import PluginInactiveError, UnsupportedVersionError

DISTRIBUTION = "efficient-rollout"


@functools.cache
def _supported_versions() -> dict[str, SpecifierSet]:
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise PluginInactiveError(
            f"{DISTRIBUTION} is not installed, only importable: vLLM and veRL cannot find its plugins. "
            f"Install it (pip install -e . in a checkout)."
        ) from error
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement.specifier for requirement in requirements}


def supported_versions(distribution: str) -> SpecifierSet:
    """Versions of another distribution that this one was tested with, as its metadata states them; empty is any.

    Raises:
        PluginInactiveError: This package is not installed, so its entry points do not exist either.
    """
    return _supported_versions().get(canonicalize_name(distribution), SpecifierSet())


def is_supported(version: str, supported: SpecifierSet) -> bool:
    """Whether a version is in a range. A build between two releases is older than the one it leads to."""
    return supported.contains(version, prereleases=True)


def check_version(distribution: str, installed: str | None) -> None:
    """Refuse a distribution that is missing, or was not tested.

    Args:
        distribution: Its name.
        installed: Its version, None where there is none.

    Raises:
        UnsupportedVersionError: Names both versions and what to install.
        PluginInactiveError: See `supported_versions`.
    """
    supported = supported_versions(distribution)
    install = f"pip install '{distribution}{supported}'"
    if installed is None:
        raise UnsupportedVersionError(f"{distribution} is not installed: {install}")
    if not is_supported(installed, supported):
        raise UnsupportedVersionError(
            f"{distribution} {installed} is not supported (supported: {supported}): {install}"
        )


def check_symbols(distribution: str, required: Iterable[str]) -> None:
    """Refuse a distribution that lacks something this package stands on.

    Args:
        distribution: Its name, for the message.
        required: `module:name`, `module:Class.name` with attributes that instances get among the names, or
            `module:function.name` with attributes that the function sets on what it is given.

    Raises:
        UnsupportedVersionError: Lists everything that is missing.
    """
    missing = [name for name in required if not _exists(name)]
    if missing:
        raise UnsupportedVersionError(
            f"{distribution} {importlib.metadata.version(distribution)} lacks what {DISTRIBUTION} uses: "
            f"{', '.join(missing)}. Install a tested version: pip install '{distribution}"
            f"{supported_versions(distribution)}'"
        )


def _exists(name: str) -> bool:
    module_name, _, path = name.partition(":")
    *parents, last = path.split(".")
    try:
        owner: Any = importlib.import_module(module_name)
        for parent in parents:
            owner = getattr(owner, parent)
        return hasattr(owner, last) or _gives_instances(owner, last)
    except (ImportError, AttributeError):
        return False


def _gives_instances(owner: Any, attribute: str) -> bool:
    """Whether a class declares it, or one of its methods, or the function that `owner` is, assigns it."""
    if not isinstance(owner, type):
        return _assigns(owner, attribute)
    return any(
        attribute in vars(base).get("__annotations__", ())
        or any(_assigns(member, attribute) for member in vars(base).values())
        for base in owner.__mro__
    )


def _assigns(function: Any, attribute: str) -> bool:
    function = getattr(function, "fget", None) or getattr(function, "__func__", function)
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    return isinstance(code, CodeType) and any(
        attribute in part.co_names
        and any(step.opname == "STORE_ATTR" and step.argval == attribute for step in dis.get_instructions(part))
        for part in (code, *(constant for constant in code.co_consts if isinstance(constant, CodeType)))
    )
