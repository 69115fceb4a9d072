"""The records of a run's steps, under one set of names, whichever framework trained."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efficient_rollout.errors import InputFileError
from efficient_rollout.files import read_text
from efficient_rollout.metrics import names
from efficient_rollout.metrics.step_file import IS_VALIDATION

# Names that veRL logs under.
REWARD_MEAN, STEP_SECONDS = "critic/score/mean", "timing_s/step"
RESPONSE_LENGTH_MEAN, RESPONSE_LENGTH_MAX = "response_length/mean", "response_length/max"
# What OpenRLHF calls the same, so that every reader of a run's steps knows one set of names.
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
