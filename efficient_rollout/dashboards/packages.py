"""Optional packages, asked for before anything is read."""

import importlib
from collections.abc import Mapping

from efficient_rollout.errors import MissingPackageError

# Package -> module; the extra `report` has them.
REPORT_PACKAGES = {"plotly": "plotly", "jinja2": "jinja2", "pyyaml": "yaml"}


def require(what: str, modules: Mapping[str, str]) -> None:
    """Raise unless everything can be imported.

    Args:
        what: Needs them, for the message.
        modules: Package to the module that it installs.

    Raises:
        MissingPackageError: Names those that cannot, and what to install.
    """
    missing = []
    for package, module in modules.items():
        try:
            importlib.import_module(module)
        except ImportError:
            missing.append(package)
    if missing:
        raise MissingPackageError(f"{what} needs {', '.join(missing)}: pip install {' '.join(missing)}")
