"""Checkpoints that are made once: kept in a cache, shared safely, never taken for finished when they are not."""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from efficient_rollout.errors import InputFileError

logger = logging.getLogger(__name__)

_LOCK_POLL_SECONDS = 4.0


def ensure_stored(
    cached: Path,
    *,
    out: Path | None,
    needed_bytes: int,
    is_finished: Callable[[Path], bool],
    make: Callable[[Path], None],
) -> Path:
    """Return a finished directory, making it only where the cache does not have it.

    Args:
        cached: Its place in the cache; it is made beside it and renamed, under a lock that a second process waits for.
        out: Copy it there; must be empty, absent, or already hold the same. None leaves it in the cache.
        needed_bytes: Disk space it takes.
        is_finished: Whether a directory holds every file of this very checkpoint.
        make: Fills an empty directory.

    Returns:
        `out` if given, else `cached`.

    Raises:
        InputFileError: A directory cannot be written, is full, or `out` holds something else.
    """
    with _disk_faults(cached):
        if out is not None:
            _require_empty_or_same(out, is_finished, cached.name)
            _require_space(out, needed_bytes)
        if not is_finished(cached):
            _require_space(cached, needed_bytes)
            with _locked(cached.with_name(f"{cached.name}.lock")):
                _make_whole(cached, is_finished, make)
        return cached if out is None else _copy(cached, out, is_finished)


def _make_whole(final: Path, is_finished: Callable[[Path], bool], make: Callable[[Path], None]) -> None:
    if is_finished(final):
        return
    partial = final.with_name(f"{final.name}.partial")
    for left_over in (partial, final):
        if left_over.exists():
            shutil.rmtree(left_over)
    partial.mkdir()
    make(partial)
    partial.rename(final)


def _copy(cached: Path, target: Path, is_finished: Callable[[Path], bool]) -> Path:
    if not is_finished(target):
        with filled_at_once(target) as folder:
            shutil.copytree(cached, folder, dirs_exist_ok=True)
    return target


@contextmanager
def filled_at_once(target: Path) -> Iterator[Path]:
    """Yield a folder that becomes `target`, absent or empty, when the block ends well, and is never seen half full."""
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as staging:
        staged = Path(staging) / "policy"
        staged.mkdir()
        yield staged
        if target.exists():
            target.rmdir()
        staged.rename(target)


@contextmanager
def _locked(lock_file: Path) -> Iterator[None]:
    """Hold the lock, saying so while another process has it. It falls away with the process that holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(lock_file)
    started = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=_LOCK_POLL_SECONDS)
            break
        except Timeout:
            waited = time.monotonic() - started
            logger.info("another process is making this policy; waiting for it, %.0f s (%s)", waited, lock_file)
    try:
        yield
    finally:
        lock.release()


def _require_space(directory: Path, needed_bytes: int) -> None:
    """Make `directory`'s parent and see that it is writable and has room."""
    parent = directory.parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=parent):
        pass
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < needed_bytes:
        raise InputFileError(
            f"{parent} has {free_bytes / 2**20:.0f} MiB free, the policy needs {needed_bytes / 2**20:.0f} MiB; "
            f"free some space or choose another directory"
        )


def _require_empty_or_same(target: Path, is_finished: Callable[[Path], bool], name: str) -> None:
    if target.is_dir() and (is_finished(target) or not any(target.iterdir())):
        return
    if target.exists():
        raise InputFileError(f"{target} exists and is not the {name} policy; remove it or choose another --out")


@contextmanager
def _disk_faults(directory: Path) -> Iterator[None]:
    """Turn a failing file operation into one message."""
    try:
        yield
    except OSError as error:
        place = error.filename or directory
        raise InputFileError(
            f"cannot write {place}: {error.strerror or error}; choose a writable directory with free space "
            f"(--out for the copy, XDG_CACHE_HOME for the cache in {directory.parent})"
        ) from error
