"""The records of a run's steps, under one set of names, whichever framework trained."""

import json
import re
from pathlib import Path
from typing import Any

from efficient_rollout.errors import InputFileError
from efficient_rollout.files import read_text
from efficient_rollout.metrics import names

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
# A record without any of these is not one of a training step.
_OF_A_STEP = (
    REWARD_MEAN,
    RESPONSE_LENGTH_MEAN,
    RESPONSE_LENGTH_MAX,
    names.ROLLOUT_SECONDS,
    names.TOKENS_PER_SECOND,
    names.MEAN_ACCEPTED_LENGTH,
    names.SPECULATIVE_TICK_SHARE,
    names.REQUANTIZE_SECONDS,
    names.WEIGHT_SYNC_SECONDS,
)
# Of the measures that a validation is about: veRL's, and OpenRLHF's of each of its data sets.
_VALIDATION = re.compile(r"val-core/(.+)|eval_(.+_pass\d+)")


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Return the training steps of a metrics file, OpenRLHF's under veRL's names.

    A record of validation alone is not one.

    Raises:
        InputFileError: The file is missing, holds no step, or a line of it is not a JSON object.
    """
    return _steps(path, _text(path))


def read_growing_steps(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Return the same of a file that may be written right now.

    Say also whether its last line is only half there and left out.

    Raises:
        InputFileError: As `read_steps`, but not for that line.
    """
    text = _text(path)
    whole, _, rest = text.rpartition("\n")
    is_half_written = bool(rest.strip()) and not _is_json(rest)
    return _steps(path, whole if is_half_written else text), is_half_written


def _text(path: Path) -> str:
    if not path.is_file():
        raise InputFileError(f"{path} does not exist: name the run's directory (trainer.default_local_dir)")
    return read_text(path, what="the metrics")


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


def _steps(path: Path, text: str) -> list[dict[str, Any]]:
    steps = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputFileError(f"{path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise InputFileError(f"{path}, line {number}: not the record of a step")
        for theirs, ours in OPENRLHF_NAMES.items():
            if theirs in record:
                record.setdefault(ours, record[theirs])
        if any(metric in record for metric in _OF_A_STEP):
            steps.append(record)
    if not steps:
        raise InputFileError(f"{path} holds no training step: the run ended before its first one")
    return steps


def read_validations(path: Path) -> list[dict[str, Any]]:
    """Return what each validation of a run measured, by its measure.

    Each tells the `step` it came after; they are in order, one a step.

    Raises:
        InputFileError: The file is missing.
    """
    found: dict[int, dict[str, Any]] = {}
    for line in _text(path).splitlines():
        record = json.loads(line) if _is_json(line) else None
        if isinstance(record, dict) and type(step := record.get("step")) is int:
            matches = {key: match for key in record if (match := _VALIDATION.fullmatch(key))}
            if matches:
                found[step] = {"step": step, **{match[1] or match[2]: record[key] for key, match in matches.items()}}
    return [found[step] for step in sorted(found)]
