"""Is the installed veRL one this package was made for?"""

from efficient_rollout.provenance import package_versions
from efficient_rollout.upstream import check_version


def check_versions() -> None:
    """Refuse a veRL that is missing or outside the supported range.

    Raises:
        UnsupportedVersionError: Names the installed version, the range, and what to install.
    """
    check_version("verl", package_versions(("verl",)).get("verl"))
