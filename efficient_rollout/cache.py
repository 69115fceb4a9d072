"""Where files that can be made again are kept."""

import os
from pathlib import Path


def cache_directory(name: str) -> Path:
    """Return `$XDG_CACHE_HOME/efficient_rollout/<name>`, or the same below `~/.cache`; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "efficient_rollout" / name
