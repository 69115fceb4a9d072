"""Folders of checkpoints that appear whole or not at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from efficient_rollout.errors import InputFileError


@contextmanager
def filled_at_once(target: Path) -> Iterator[Path]:
    """Yield a folder that becomes `target`, absent or empty, when the block ends well, and is never seen half full.

    Raises:
        InputFileError: `target` holds something; or it cannot be written, or the disk is full.
    """
    with disk_faults_told(target):
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise InputFileError(f"{target} exists and holds something else; remove it or choose another --out")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as staging:
            staged = Path(staging) / "policy"
            staged.mkdir()
            yield staged
            if target.exists():
                target.rmdir()
            staged.rename(target)


@contextmanager
def disk_faults_told(place: Path) -> Iterator[None]:
    """Turn a failing file operation into one message."""
    try:
        yield
    except OSError as error:
        raise InputFileError(
            f"cannot write {error.filename or place}: {error.strerror or error}; choose a writable directory with "
            "free space (--out for a policy, XDG_CACHE_HOME for the cache)"
        ) from error
