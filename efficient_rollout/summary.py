"""`efficient-rollout summary`: a run's metrics as a table, a row per training step."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efficient_rollout.metrics import names
from efficient_rollout.metrics.step_file import FILE_NAME
from efficient_rollout.tables import aligned
from efficient_rollout.training_runs.comparison import (
    reward_verdict,
    speed_verdicts,
    speedups,
    tokens_per_tick,
    untouched,
)
from efficient_rollout.training_runs.recipe import comparison_notes
from efficient_rollout.training_runs.run import (
    CONFIG_FILE,
    RESPONSE_LENGTH_MAX,
    RESPONSE_LENGTH_MEAN,
    REWARD_MEAN,
    Run,
    read_rows,
    read_run,
    read_steps,
    validations,
)

LOG_FILE = "train.log"
_OTHER_QUESTIONS = "Each step asks other questions: its reward and lengths do not compare with another step's.\n"


# Two lines of title, the key in `metrics.jsonl`, which may be one that veRL logs, and how a number is shown.
_COLUMNS = (
    ("step", "", "step", ".0f"),
    ("reward", "mean", REWARD_MEAN, ".3f"),
    ("response", "mean tok", RESPONSE_LENGTH_MEAN, ".1f"),
    ("response", "max tok", RESPONSE_LENGTH_MAX, ".0f"),
    ("rollout", "s", names.ROLLOUT_SECONDS, ".2f"),
    ("generated", "tok/s", names.TOKENS_PER_SECOND, ".0f"),
    ("accepted", "length", names.MEAN_ACCEPTED_LENGTH, ".2f"),
    ("drafting", "of ticks", names.SPECULATIVE_TICK_SHARE, ".0%"),
    ("requantize", "s", names.REQUANTIZE_SECONDS, ".3f"),
    ("sync", "s", names.WEIGHT_SYNC_SECONDS, ".3f"),
)
_PLACE_OF_BASELINE = 2  # behind the run's own reward


def add_summary_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `summary`; the parsed arguments' `run` prints the table and returns the exit code."""
    parser = subparsers.add_parser("summary", help="print a run's metrics, a row per step")
    parser.add_argument("run_directory", type=Path, help="trainer.default_local_dir of the run")
    parser.add_argument("--against", type=Path, metavar="BASELINE", help="another run's directory, to compare with")
    parser.set_defaults(run=run_summary)


def run_summary(args: argparse.Namespace) -> int:
    """Print the table, the comparison if one is asked for, and where the rest is.

    Raises:
        InputFileError: A directory holds no run, or the runs follow different recipes.
    """
    directory: Path = args.run_directory
    if args.against is None:
        text = render_table(read_steps(directory / FILE_NAME))
        runs = {"this run": directory}
    else:
        own, baseline = read_run(directory), read_run(args.against)
        text = render_table(own.records, baseline.records) + compare(own, baseline)
        runs = {"this run": directory, "baseline": args.against}
    sys.stdout.write(f"{text}{_validation(runs)}{_where(directory)}")
    return 0


def render_table(steps: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return a row per step under two lines of title; a dash where a step did not report a number.

    Args:
        steps: Records of the run.
        baseline: Of another, whose reward of each step stands beside the run's own.
    """
    titles = [[column[line] for column in _COLUMNS] for line in (0, 1)]
    rows = [[_cell(step.get(metric), format_spec) for _, _, metric, format_spec in _COLUMNS] for step in steps]
    if baseline:
        rewards = {step["step"]: step.get(REWARD_MEAN) for step in baseline}
        cells = ["reward", "baseline", *(_cell(rewards.get(step["step"]), ".3f") for step in steps)]
        for row, cell in zip([*titles, *rows], cells, strict=True):
            row.insert(_PLACE_OF_BASELINE, cell)
    return _OTHER_QUESTIONS + aligned([*titles, *rows], left=())


def compare(own: Run, baseline: Run) -> str:
    """Return what the run's page says of the two, and the figures behind it, steadiest first.

    Raises:
        InputFileError: They follow different recipes.
    """
    notes = comparison_notes(own, baseline)
    estimates = [tokens_per_tick(own, baseline), *speedups(own, baseline), untouched(own, baseline)]
    rows = [
        [found.label, f"{found.own:.2f}", f"{found.baseline:.2f}", found.text(), str(found.num_steps)]
        for found in estimates
        if found is not None
    ]
    table = aligned([["", "this run", "baseline", "times as good", "steps"], *rows]) if rows else ""
    told = [*speed_verdicts(own, baseline), f"Rewards: {reward_verdict(own, baseline)}", *notes]
    heading = f"against {baseline.directory}, means of the steps that both have, without the first:"
    return f"\n{heading}\n{table}" + "".join(f"{sentence}\n" for sentence in told)


def _validation(runs: Mapping[str, Path]) -> str:
    """Return what each run's first and last validation measured.

    The questions are the same every time, while a step has its own.
    """
    rows = []
    for name, directory in runs.items():
        measured = validations(read_rows(directory / FILE_NAME)[0])
        if len(measured) > 1:
            ends = (measured[0], measured[-1])
            for key in sorted(set.intersection(*map(set, ends)) - {"step"}):
                before, after = (f"{_cell(record[key], '.3f')} at step {record['step']}" for record in ends)
                rows.append([name, f"{key}:", f"{before},", after])
    return f"\nvalidation, the same questions each time:\n{aligned(rows, left=(0, 1))}" if rows else ""


def _cell(value: Any, format_spec: str) -> str:
    return format(value, format_spec) if isinstance(value, int | float) else "-"


def _where(directory: Path) -> str:
    files = {"metrics": FILE_NAME, "settings": CONFIG_FILE, "log": LOG_FILE}
    present = [(label, directory / name) for label, name in files.items() if (directory / name).is_file()]
    return "".join(f"{label + ':':<10}{path.resolve()}\n" for label, path in present)
