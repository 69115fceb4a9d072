"""Which versions of another package this one was tested with: its own metadata says it."""

import functools
import importlib.metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from efficient_rollout.errors import PluginInactiveError, UnsupportedVersionError
from efficient_rollout.provenance import package_versions

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
    return {canonicalize_name(need.name): need.specifier for need in map(Requirement, lines)}


def supported_versions(distribution: str) -> SpecifierSet:
    """Return the versions of another distribution that this one was tested with, as its metadata says; empty is any.

    Raises:
        PluginInactiveError: This package is not installed, so its entry points do not exist either.
    """
    return _supported_versions().get(canonicalize_name(distribution), SpecifierSet())


def is_supported(version: str, supported: SpecifierSet) -> bool:
    """Tell whether a version is in a range. A build between two releases is older than the one it leads to."""
    return supported.contains(version, prereleases=True)


def check_version(distribution: str, installed: str | None) -> None:
    """Refuse a distribution whose version was not tested, or that is missing: None is installed.

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


def check_installed(distribution: str) -> None:
    """Refuse a distribution that is not installed here, or not in a version that was tested; see `check_version`."""
    check_version(distribution, package_versions((distribution,)).get(distribution))
