"""What a run writes of its steps: `metrics.jsonl`, one JSON object a line, and `timeline.jsonl`.

One file is one run, whichever command started it, and however often it was resumed: a run that begins anew sets an
earlier one's files aside, and one that resumes goes on behind the rows that led to its checkpoint, which keeps its id.
"""

import fcntl
import itertools
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efficient_rollout.errors import ConfigError
from efficient_rollout.files import written_whole
from efficient_rollout.metrics.rollout_record import TIMELINE_FILE, StepTimelines
from efficient_rollout.metrics.timeline import is_sampled

logger = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"
# What a row holds beside its metrics: its run, and how often that had been resumed; and, in the row of an evaluation
# that is no part of a step's own row, that it is one.
RUN_ID, RUN_PART, IS_VALIDATION = "run_id", "run_part", "is_validation"
_LOCK_FILE = ".metrics.lock"
# In the folder of each checkpoint.
RUN_ID_FILE = "efficient_rollout_run_id"
_WANDB_RUN_ID, _WANDB_RESUME = "WANDB_RUN_ID", "WANDB_RESUME"


class StepFiles:
    """Keeps what a run's directory holds of its steps: `metrics.jsonl`, and `timeline.jsonl`.

    The first row tells whether the run begins or goes on. Until then nothing in the directory changes. The timelines
    are those of sampled steps and of the newest one: a few lines, however long the run.

    Args:
        directory: The run's, made if absent.
        resumed_from: Folder of the checkpoint that training goes on from; None without one.

    Raises:
        ConfigError: Another job writes there now.
    """

    def __init__(self, directory: Path, resumed_from: Path | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(directory)
        self._metrics, self._timelines = directory / FILE_NAME, directory / TIMELINE_FILE
        self.run_id = self._run_id(directory, resumed_from)
        self._part: int | None = None
        self._has_trained = False
        self._refused: set[str] = set()

    def _run_id(self, directory: Path, resumed_from: Path | None) -> str:
        found = None
        if resumed_from is not None:
            # A job that ended between a checkpoint and its mark leaves one whose place alone tells whose it is.
            lies_here = resumed_from.resolve().is_relative_to(directory.resolve())
            found = run_id_of(resumed_from) or (self._id_of_rows() if lies_here else None)
        return found or uuid.uuid4().hex[:16]  # fit for wandb

    def _id_of_rows(self) -> str | None:
        ids = [row.get(RUN_ID) for _, row in _rows(self._metrics)]
        return ids[-1] if ids else None

    def append(
        self,
        step: int,
        data: Mapping[str, Any],
        timelines: StepTimelines | None = None,
        *,
        is_validation: bool = False,
    ) -> None:
        """Add one row: the step's number, the Unix time, the run's id and part, and every metric that is a number.

        Args:
            step: Counted from 1; the weights before the first step are those of step 0.
            data: Metrics, of whichever framework's types; one that is no number is left out, with a warning.
            timelines: Of the step's rollout.
            is_validation: The row is an evaluation of the weights after the step, and not the step's own.
        """
        if self._part is None:
            self._begin(is_first=step == 0 or (step == 1 and not is_validation))
        if not self._has_trained:
            self._replace_rows(step, is_validation=is_validation)
        row = {"step": step, "time": time.time(), RUN_ID: self.run_id, RUN_PART: self._part}
        row |= {IS_VALIDATION: True} if is_validation else {}
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | self._numbers(data)) + "\n")
        if timelines is not None and timelines.engines:
            self._add_timelines(timelines)

    def _begin(self, *, is_first: bool) -> None:
        """Set aside what belongs to another run; of rows without an id nobody knows it."""
        theirs = self._id_of_rows()
        if is_first or theirs not in (None, self.run_id):
            set_aside(self._metrics, self._timelines)
        parts = [row.get(RUN_PART, 0) for _, row in _rows(self._metrics)]
        self._part = max(parts, default=-1) + 1

    def _replace_rows(self, step: int, *, is_validation: bool) -> None:
        """Drop what this row, the first of its kind in this process, takes the place of; a torn line too.

        A step takes that of every row from it on. An evaluation, before a resumed run trains or without training, takes
        that of the same evaluation alone.
        """
        if is_validation:
            _keep(self._metrics, lambda row: row["step"] != step or not row.get(IS_VALIDATION))
            return
        self._has_trained = True
        _keep(self._metrics, lambda row: row["step"] < step)
        _keep(self._timelines, lambda row: row["step"] < step)

    def _add_timelines(self, timelines: StepTimelines) -> None:
        """Put a step in the place of the newest one, which stays where it is sampled."""
        kept = [line for line, row in _rows(self._timelines) if is_sampled(row["step"])]
        with written_whole(self._timelines) as staged:
            staged.write_text("".join([*kept, json.dumps(timelines.to_dict()) + "\n"]), encoding="utf-8")

    def _numbers(self, data: Mapping[str, Any]) -> dict[str, bool | int | float]:
        found = {name: _as_number(value) for name, value in data.items() if value is not None}
        refused = [name for name, value in found.items() if value is None and name not in self._refused]
        if refused:
            self._refused.update(refused)
            logger.warning("%s holds numbers alone, and these are none: %s", self._metrics, ", ".join(refused))
        return {name: value for name, value in found.items() if value is not None}


def require_free(directory: Path) -> None:
    """Raise ConfigError, before a job writes anything there, where another job writes into this directory now."""
    if directory.is_dir():
        os.close(_locked(directory))


def set_aside(*paths: Path) -> None:
    """Keep an earlier run's files under other names, `metrics.1.jsonl` and so on, one number for all of them."""
    for number in itertools.count(1):
        kept = {path: path.with_suffix(f".{number}{path.suffix}") for path in paths}
        if not any(other.exists() for other in kept.values()):
            break
    for path, other in kept.items():
        if path.exists():
            path.rename(other)
            logger.warning("kept %s of an earlier run as %s", path, other.name)


def _locked(directory: Path) -> int:
    """Return a descriptor that holds the directory for this process, as long as it is open."""
    descriptor = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = os.read(descriptor, 200).decode(errors="replace")
        os.close(descriptor)
        raise ConfigError(
            f"another job writes into {directory} now ({holder}): wait for its end, or give this one a directory of "
            "its own (trainer.default_local_dir, or OpenRLHF's --ckpt.output_dir)"
        ) from error
    except OSError as error:
        logger.warning("whether another job writes into %s cannot be told: %s", directory, error)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return descriptor


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return each whole line with what it says; without those that are no row, as the torn last one of a killed job."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            found.append((line if line.endswith("\n") else line + "\n", row))
    return found


def _keep(path: Path, is_kept: Callable[[Mapping[str, Any]], bool]) -> None:
    if not path.is_file():
        return
    kept = "".join(line for line, row in _rows(path) if is_kept(row))
    if kept != path.read_text(encoding="utf-8", errors="replace"):
        with written_whole(path) as staged:
            staged.write_text(kept, encoding="utf-8")


def _as_number(value: Any) -> bool | int | float | None:
    """Return Python's number for one of any framework, or for an array or tensor of one; None for anything else."""
    if not isinstance(value, bool | int | float) and hasattr(value, "item"):
        try:
            value = value.item()
        except (ValueError, RuntimeError):  # several numbers, or none that is known
            return None
    return value if isinstance(value, bool | int | float) else None


def mark_checkpoint(folder: Path, run_id: str) -> None:
    """Keep the run's id with a checkpoint that was just saved; nothing where the folder lies on no disk of this one."""
    if folder.is_dir():
        (folder / RUN_ID_FILE).write_text(run_id, encoding="utf-8")


def run_id_of(folder: Path) -> str | None:
    """Return the id of the run that saved this checkpoint; None where the checkpoint holds none."""
    path = folder / RUN_ID_FILE
    return (path.read_text(encoding="utf-8").strip() or None) if path.is_file() else None


@contextmanager
def one_wandb_run(run_id: str) -> Iterator[None]:
    """Make `wandb.init` go on with the run of this id, or begin it, unless the user names a run to wandb himself.

    Both frameworks call `wandb.init` themselves, and pass no id: wandb's own variables are the one way to give it one.
    """
    if _WANDB_RUN_ID in os.environ or _WANDB_RESUME in os.environ:
        yield
        return
    os.environ.update({_WANDB_RUN_ID: run_id, _WANDB_RESUME: "allow"})
    try:
        yield
    finally:
        del os.environ[_WANDB_RUN_ID], os.environ[_WANDB_RESUME]
