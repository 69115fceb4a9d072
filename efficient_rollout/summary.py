"""`efficient-rollout summary`: a run's metrics as a table, a row per training step."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_rollout.errors import InputFileError
from efficient_rollout.files import read_text
from efficient_rollout.metrics import names
from efficient_rollout.metrics.step_file import FILE_NAME
from efficient_rollout.tables import aligned

# veRL's, of the measure that a validation is about.
_VALIDATION = "val-core/"
CONFIG_FILE, LOG_FILE = "config.yaml", "train.log"
# Names that veRL logs under.
REWARD_MEAN, STEP_SECONDS = "critic/score/mean", "timing_s/step"
# What OpenRLHF calls the same, so that every reader of a run's steps knows one set of names.
OPENRLHF_NAMES = {
    "rollout/reward_mean": REWARD_MEAN,
    "rollout/response_length_mean": "response_length/mean",
    "timing/step_total": STEP_SECONDS,
    "timing/generation": "timing_s/gen",
    "timing/make_experience": "timing_s/old_log_prob",
    "timing/ppo_train": "timing_s/update_actor",
    "timing/broadcast": "timing_s/update_weights",
    names.PROBABILITY_DIFFERENCE: "training/rollout_probs_diff_mean",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table.

    Attributes:
        title: Two lines, the unit in the second.
        metric: Key in `metrics.jsonl`; ours, or one that veRL logs.
        format_spec: How a number is shown.
    """

    title: tuple[str, str]
    metric: str
    format_spec: str


COLUMNS = (
    Column(("step", ""), "step", ".0f"),
    Column(("reward", "mean"), REWARD_MEAN, ".3f"),
    Column(("response", "mean tok"), "response_length/mean", ".1f"),
    Column(("response", "max tok"), "response_length/max", ".0f"),
    Column(("rollout", "s"), names.ROLLOUT_SECONDS, ".2f"),
    Column(("generated", "tok/s"), names.TOKENS_PER_SECOND, ".0f"),
    Column(("accepted", "length"), names.MEAN_ACCEPTED_LENGTH, ".2f"),
    Column(("drafting", "of ticks"), names.SPECULATIVE_TICK_SHARE, ".0%"),
    Column(("requantize", "s"), names.REQUANTIZE_SECONDS, ".3f"),
    Column(("sync", "s"), names.WEIGHT_SYNC_SECONDS, ".3f"),
)


def add_summary_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `summary`; the parsed arguments' `run` prints the table and returns the exit code."""
    parser = subparsers.add_parser("summary", help="print a run's metrics, a row per step")
    parser.add_argument("run_directory", type=Path, help="trainer.default_local_dir of the run")
    parser.add_argument("--against", type=Path, metavar="BASELINE", help="another run's directory, to compare with")
    parser.set_defaults(run=run_summary)


def run_summary(args: argparse.Namespace) -> int:
    """Print the table, the comparison if one is asked for, and where the rest is."""
    directory: Path = args.run_directory
    steps = read_steps(directory / FILE_NAME)
    comparison = ""
    if args.against is not None:
        comparison = f"against {args.against}, {compare(steps, read_steps(args.against / FILE_NAME))}"
    validation = _validation({"this run": directory, **({"the other": args.against} if args.against else {})})
    sys.stdout.write(f"{render_table(steps)}{comparison}{validation}{_where(directory)}")
    return 0


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The training steps of a metrics file, OpenRLHF's under veRL's names; a record of validation alone is not one.

    Raises:
        InputFileError: The file is missing, holds no step, or a line of it is not a JSON object.
    """
    return _steps(path, _text(path))


def read_growing_steps(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The same of a file that may be written right now, and whether its last line is only half there and left out.

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
        if any(column.metric in record for column in COLUMNS[1:]):
            steps.append(record)
    if not steps:
        raise InputFileError(f"{path} holds no training step: the run ended before its first one")
    return steps


def render_table(steps: Sequence[Mapping[str, Any]]) -> str:
    """Columns under two lines of title; a dash where a step did not report a number."""
    rows = [[_cell(step.get(column.metric), column.format_spec) for column in COLUMNS] for step in steps]
    titles = [[column.title[line] for column in COLUMNS] for line in (0, 1)]
    return aligned([*titles, *rows], left=())


def compare(steps: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> str:
    """A run beside another, in sums over the steps both have but the first, in which processes and caches warm up.

    Raises:
        InputFileError: There is no such step, or one lacks a number that is compared.
    """
    own, other = ({step["step"]: step for step in run} for run in (steps, baseline))
    shared = sorted(own.keys() & other.keys())[1:]
    if not shared:
        raise InputFileError("the runs share no step after the first: one of them ended too early to be compared")
    tokens, rollout_s, step_s = (
        [_sum(run, shared, key) for run in (own, other)]
        for key in (names.GENERATED_TOKENS, names.ROLLOUT_SECONDS, STEP_SECONDS)
    )
    rates = [count / seconds for count, seconds in zip(tokens, rollout_s, strict=True)]
    rows = {"generated tok/s": rates, "rollout s": rollout_s, "step s": step_s, "generated tokens": tokens}
    lines = [["", "this run", "the other", "times as much"]]
    lines += [[name, f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f}"] for name, (ours, theirs) in rows.items()]
    return f"steps {shared[0]} to {shared[-1]} of both:\n{aligned(lines)}"


def _validation(runs: Mapping[str, Path]) -> str:
    """What each run's first and last validation measured: the same questions every time, while a step has its own."""
    rows = []
    for name, directory in runs.items():
        lines = _text(directory / FILE_NAME).splitlines()
        records = [record for line in lines if _is_json(line) and isinstance(record := json.loads(line), dict)]
        measured = [
            {"step": record.get("step"), **{key: value for key, value in record.items() if key.startswith(_VALIDATION)}}
            for record in records
        ]
        measured = [record for record in measured if len(record) > 1]
        if len(measured) > 1:
            ends = (measured[0], measured[-1])
            for key in sorted(set.intersection(*map(set, ends)) - {"step"}):
                before, after = (f"{_cell(record[key], '.3f')} at step {record['step']}" for record in ends)
                rows.append([name, f"{key.removeprefix(_VALIDATION)}:", f"{before},", after])
    return f"validation, the same questions each time:\n{aligned(rows, left=(0, 1))}" if rows else ""


def _sum(run: Mapping[int, Mapping[str, Any]], numbers: Sequence[int], key: str) -> float:
    missing = [number for number in numbers if not isinstance(run[number].get(key), int | float)]
    if missing:
        raise InputFileError(f"step {missing[0]} reports no {key}, without which the runs cannot be compared")
    return float(sum(run[number][key] for number in numbers))


def _cell(value: Any, format_spec: str) -> str:
    return format(value, format_spec) if isinstance(value, int | float) else "-"


def _where(directory: Path) -> str:
    files = {"metrics": FILE_NAME, "settings": CONFIG_FILE, "log": LOG_FILE}
    present = [(label, directory / name) for label, name in files.items() if (directory / name).is_file()]
    return "".join(f"{label + ':':<10}{path.resolve()}\n" for label, path in present)
