"""A run's directory, read with every fault either one clear error or a note that the page shows.

The records of its steps have one set of names, veRL's, whichever framework trained.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.errors import InputFileError, MissingPackageError
from efficient_rollout.files import read_json, read_text
from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_record import TIMELINE_FILE, StepTimelines
from efficient_rollout.metrics.step_file import FILE_NAME, IS_VALIDATION, RUN_PART

CONFIG_FILE, PROVENANCE_FILE = "config.yaml", "provenance.json"
Values = NDArray[np.float64]

REWARD_MEAN, STEP_SECONDS = "critic/score/mean", "timing_s/step"
RESPONSE_LENGTH_MEAN, RESPONSE_LENGTH_MAX = "response_length/mean", "response_length/max"
# What OpenRLHF calls the same.
OPENRLHF_NAMES = {
    "rollout/reward_mean": REWARD_MEAN,
    "rollout/response_length_mean": RESPONSE_LENGTH_MEAN,
    "timing/step_total": STEP_SECONDS,
    "timing/generation": "timing_s/gen",
    "timing/make_experience": "timing_s/old_log_prob",
    "timing/ppo_train": "timing_s/update_actor",
    "timing/broadcast": "timing_s/update_weights",
    names.PROBABILITY_DIFFERENCE: "training/rollout_probs_diff_mean",
}
# Of the measures that a validation is about: veRL's, and OpenRLHF's of each of its data sets.
_VALIDATION = re.compile(r"val-core/(.+)|eval_(.+_pass\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Holds what the files say.

    Attributes:
        records: A step's metrics each, in the order of steps, one a step.
        config: The resolved configuration; None where the directory has none.
        provenance: Command, versions and hardware; empty where the directory has none.
        timelines: Of sampled steps, by step.
        validations: What each validation measured, with its `step`, oldest first.
        notes: What a reader must know about the files, a sentence each.
    """

    directory: Path
    records: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    timelines: Mapping[int, StepTimelines] = field(default_factory=dict)
    validations: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()

    @property
    def steps(self) -> list[int]:
        """Return the steps' numbers."""
        return [int(record["step"]) for record in self.records]

    @property
    def resumed(self) -> list[int]:
        """Return the steps that are the first after a resume: processes and caches warm up in them again."""
        parts = [record.get(RUN_PART, 0) for record in self.records]
        return [step for step, part, before in zip(self.steps[1:], parts[1:], parts, strict=False) if part != before]

    @property
    def short_of_engines(self) -> list[int]:
        """Return the steps in which fewer engines reported than in others: one was lost, or came later."""
        engines = self.values(names.NUM_ENGINES)
        most = np.nanmax(np.append(engines, 0.0))
        return [step for step, number in zip(self.steps, engines, strict=True) if number < most]

    def values(self, metric: str) -> Values:
        """Return a metric at every step; not a number where it was not reported, or is none."""
        return np.array([as_number(record.get(metric)) for record in self.records])

    def has(self, metric: str) -> bool:
        """Tell whether some step reported a finite number."""
        return bool(np.isfinite(self.values(metric)).any())

    def reported(self, metrics: Mapping[str, str]) -> dict[str, Values]:
        """Return, by label, the values of those metrics that some step reported."""
        return {label: self.values(metric) for label, metric in metrics.items() if self.has(metric)}

    def names_under(self, prefix: str) -> list[str]:
        """Return metrics of some step that begin with `prefix` and are numbers, in order of first appearance."""
        found = dict.fromkeys(name for record in self.records for name in record if name.startswith(prefix))
        return [name for name in found if self.has(name)]


def as_number(value: Any) -> float:
    """Return a finite float; not a number for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def read_run(directory: Path) -> Run:
    """Read a run's files.

    Raises:
        InputFileError: The directory is none, holds no training step, or a file in it is not what its name says.
    """
    if not directory.is_dir():
        raise InputFileError(f"{directory} is no directory: name the run's (trainer.default_local_dir)")
    rows, is_half_written = read_rows(directory / FILE_NAME)
    steps = [row for row in rows if not row.get(IS_VALIDATION)]
    newest = {row["step"]: row for row in steps}
    records = [newest[step] for step in sorted(newest)]
    notes = []
    if is_half_written:
        notes.append(f"The last line of {FILE_NAME} is only half written, as when the run goes on: it is left out.")
    if len(newest) < len(steps):
        notes.append(f"{FILE_NAME} holds some steps more than once, as after a restart: the newest record counts.")
    timelines, num_bad = _timelines(directory / TIMELINE_FILE)
    if num_bad:
        notes.append(f"{num_bad} lines of {TIMELINE_FILE} are no timelines and are left out.")
    run = Run(
        directory=directory,
        records=records,
        config=_config(directory / CONFIG_FILE),
        provenance=_provenance(directory / PROVENANCE_FILE),
        timelines={record["step"]: timelines[record["step"]] for record in records if record["step"] in timelines},
        validations=validations(rows),
    )
    return replace(run, notes=[*notes, *_uncounted(run)])


def _uncounted(run: Run) -> list[str]:
    """Return what no comparison counts, and why."""
    notes = []
    if run.resumed:
        steps = ", ".join(map(str, run.resumed))
        notes.append(
            f"The run was resumed before step {steps}: processes started again. No comparison counts such steps."
        )
    if few := run.short_of_engines:
        least, most = (int(bound(run.values(names.NUM_ENGINES))) for bound in (np.nanmin, np.nanmax))
        notes.append(
            f"Between {least} and {most} engines reported, fewer than {most} in {len(few)} steps, first in step "
            f"{few[0]}. No comparison counts such steps."
        )
    return notes


def _config(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        import yaml
    except ImportError as fault:
        raise MissingPackageError(f"{path} cannot be read without pyyaml: pip install pyyaml") from fault

    # What looks like a date is text: other packages change what becomes of one, in every loader of a process.
    loader: Any = type("LoaderWithoutDates", (yaml.SafeLoader,), {})
    loader.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)
    try:
        config = yaml.load(read_text(path, what="the run's configuration"), loader)
    except yaml.YAMLError as fault:
        raise InputFileError(f"{path} is not YAML ({str(fault).splitlines()[0]}): it is not a run's") from fault
    return _with_keys(config, path)


def _provenance(path: Path) -> Mapping[str, Any]:
    return _with_keys(read_json(path, what="the run's provenance"), path) if path.is_file() else {}


def _with_keys(content: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise InputFileError(f"{path} holds no keys: it is not a run's")
    return content


def _timelines(path: Path) -> tuple[dict[int, StepTimelines], int]:
    """Return them by step, and how many lines are none: a timeline is an extra, so none of it ends the report."""
    if not path.is_file():
        return {}, 0
    found, num_bad = {}, 0
    for line in read_text(path, what="the timeline").splitlines():
        try:
            timelines = StepTimelines.from_dict(json.loads(line))
        except (json.JSONDecodeError, InputFileError):
            num_bad += 1
        else:
            found[timelines.step] = timelines
    return found, num_bad


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Return the training steps of a metrics file; errors are those of `read_rows`."""
    return [row for row in read_rows(path)[0] if not row.get(IS_VALIDATION)]


def read_rows(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Return the rows of a metrics file, OpenRLHF's under veRL's names, those of evaluations alone among them.

    Say also whether its last line is only half there and left out, as where the file is being written.

    Raises:
        InputFileError: The file is missing, holds no training step, or a line before the last is no step's.
    """
    if not path.is_file():
        raise InputFileError(f"{path} does not exist: name the run's directory (trainer.default_local_dir)")
    rows, is_half_written = [], False
    lines = read_text(path, what="the metrics").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            is_half_written = not line.endswith("\n")
            if is_half_written:
                break
            raise InputFileError(f"{path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise InputFileError(f"{path}, line {number}: not the record of a step")
        for theirs, ours in OPENRLHF_NAMES.items():
            if theirs in row:
                row.setdefault(ours, row[theirs])
        rows.append(row)
    if all(row.get(IS_VALIDATION) for row in rows):
        raise InputFileError(f"{path} holds no training step: the run ended before its first one")
    return rows, is_half_written


def validations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what each validation of a run measured, by its measure.

    Each tells the `step` it came after; they are in order, one a step.
    """
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        matches = {key: match for key in row if (match := _VALIDATION.fullmatch(key))}
        if matches:
            measured = {match[1] or match[2]: row[key] for key, match in matches.items()}
            found[row["step"]] = {"step": row["step"], **measured}
    return [found[step] for step in sorted(found)]
