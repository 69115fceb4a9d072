"""What the check found: a table, a file to be sent, and the machine's certificate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficient_rollout.certificate import Certificate, Machine
from efficient_rollout.gpu_check.plan import Step
from efficient_rollout.gpu_check.runner import Outcome, last_lines
from efficient_rollout.tables import aligned

SCHEMA_VERSION = 1
FILE = "gpu_check.json"
_MOST_SHOWN = 6


def failed_of(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Return the step that failed; None where none did."""
    return next((outcome for outcome in outcomes if outcome.problem is not None), None)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return a table with a row for each step."""
    lines = [["step", "result", "seconds", "measured"]]
    for outcome in outcomes:
        result = "FAILED" if outcome.problem else "passed before" if outcome.is_old else "passed"
        lines.append([outcome.step.name, result, f"{outcome.seconds:.1f}", _shown(outcome.measured or {})])
    return aligned(lines, left=(0, 1, 3))


def _shown(measured: dict[str, Any]) -> str:
    """Return its first plain values; tables of numbers stand in the file."""
    plain = [f"{name} {value}" for name, value in measured.items() if not isinstance(value, dict | list)]
    rest = [name for name, value in measured.items() if isinstance(value, dict | list)]
    return ", ".join([*plain, *rest][:_MOST_SHOWN]).replace("_", " ")


def failure(outcome: Outcome) -> str:
    """Return what is said of a step that failed."""
    lines = "".join(f"  | {line}\n" for line in last_lines(outcome.log))
    return f"step {outcome.step.name} FAILED: {outcome.problem}. The end of {outcome.log}:\n{lines}"


def steps_document(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the steps, as JSON types."""
    return [
        {
            "name": outcome.step.name,
            "passed": outcome.problem is None,
            "seconds": round(outcome.seconds, 2),
            "in_an_earlier_run": outcome.is_old,
            "measured": outcome.measured,
            "problem": outcome.problem,
            "last_lines": last_lines(outcome.log) if outcome.problem else [],
        }
        for outcome in outcomes
    ]


def certificate_of(
    machine: Machine, steps: Sequence[Step], outcomes: Sequence[Outcome], birth: dict[str, Any]
) -> Certificate | None:
    """Make the certificate of what was found.

    It is None while it is not known whether every step passes that counts.

    Args:
        machine: This one.
        steps: All of them.
        outcomes: Of those that ran or passed before.
        birth: From `provenance`.
    """
    counted = [outcome for outcome in outcomes if outcome.step.certifies]
    failed = failed_of(counted)
    passed = tuple(outcome.step.name for outcome in counted if outcome.problem is None)
    if failed is None and passed != tuple(step.name for step in steps if step.certifies):
        return None
    return Certificate(
        machine=machine,
        outcome="passed" if failed is None else "failed",
        steps=passed,
        failed_step=None if failed is None else failed.step.name,
        time=birth["time"],
        commit=birth["commit"],
    )


def files_to_send(folder: Path, outcomes: Sequence[Outcome]) -> str:
    """Return what a reader is asked to send."""
    failed = failed_of(outcomes)
    logs = "" if failed is None else f" and {failed.log}"
    return f"please send {folder / FILE}{logs} to the authors: what runs where is known from such files alone"
