"""`efficient-rollout gpu-check`: prove on this machine's GPU that drafting changes no sample, and certify it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficient_rollout.bench.report import say
from efficient_rollout.certificate import Certificate, Machine, certificate_path
from efficient_rollout.cleanup import exit_code_of
from efficient_rollout.errors import ConfigError
from efficient_rollout.files import write_json
from efficient_rollout.gpu_check import runner
from efficient_rollout.gpu_check.runner import Outcome
from efficient_rollout.gpu_check.steps import EXIT_FAILED, KERNEL_STEPS, QUICK_STEPS, STEPS, Step, command
from efficient_rollout.provenance import result_document
from efficient_rollout.tables import aligned

SCHEMA_VERSION = 1
FILE = "gpu_check.json"
_MOST_SHOWN = 6
SHAPE_NAMES = ("7b", "8b", "qwen3-8b", "14b")


def add_gpu_check_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `gpu-check`; the parsed arguments carry `run`."""
    parser = subparsers.add_parser(
        "gpu-check", help="prove on a GPU that drafting changes no sample; no network needed"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder of logs, state and the report")
    parser.add_argument("--fresh", action="store_true", help="start over, whatever passed before in that folder")
    parser.add_argument("--skip-measuring", action="store_true", help="leave out the last steps, which prove nothing")
    less = parser.add_mutually_exclusive_group()
    less.add_argument("--quick", action="store_true", help="certify one engine shape in 8 minutes; a later run goes on")
    less.add_argument("--kernels", action="store_true", help="torch and Triton alone, in 3 minutes; certifies nothing")
    parser.add_argument("--shapes", default="7b,8b,14b", help=f"of {', '.join(SHAPE_NAMES)}")
    parser.set_defaults(run=run_gpu_check)


def run_gpu_check(args: argparse.Namespace) -> int:
    """Run the steps, and write what they found. Return 1 where one failed."""

    def job() -> int:
        from efficient_rollout.gpu_check import start

        shapes, folder = _shape_names(args.shapes), args.out.resolve()
        steps = [step for step in STEPS if step.certifies or not args.skip_measuring]
        if args.kernels:
            steps, shapes, folder, machine = KERNEL_STEPS, (), folder / "kernels", start.machine_of_torch()
        else:
            machine = start.machine_to_check()
        with runner.locked(folder):
            return _check(args, machine, QUICK_STEPS if args.quick else steps, folder, shapes)

    return exit_code_of("gpu-check", job)


def _check(
    args: argparse.Namespace, machine: Machine, steps: Sequence[Step], folder: Path, shapes: tuple[str, ...]
) -> int:
    """Run steps on a machine, print the table, and write report and certificate. Return 1 where one failed."""
    limit_minutes = sum(step.limit_s for step in steps) / 60
    say(f"checking {machine.gpu}, driver {machine.driver}, in {folder}: {limit_minutes:.0f} minutes at most")
    state = runner.starting_state(folder, machine, say, fresh=args.fresh)
    outcomes = runner.run_steps(steps, folder, state, lambda step: command(step, folder, shapes), say)
    failed = next((outcome for outcome in outcomes if outcome.problem is not None), None)
    document = result_document(
        args,
        SCHEMA_VERSION,
        machine=machine.model_dump(),
        steps=[_document(outcome) for outcome in outcomes],
        outcome="passed" if failed is None else "failed",
    )
    with runner.disk_errors("the report", folder):
        write_json(folder / FILE, document)
    say(f"\n{_table(outcomes)}")
    if failed is not None:
        lines = "".join(f"  | {line}\n" for line in runner.last_lines(failed.log))
        say(f"step {failed.name} FAILED: {failed.problem}. The end of {failed.log}:\n{lines}")
    certificate = _certificate(machine, steps, outcomes, document["provenance"])
    if certificate is not None and not args.kernels:
        path = certificate_path(machine)
        with runner.disk_errors("the certificate", path.parent):
            certificate.write(path)
        say(f"certificate ({certificate.outcome}): {path}")
    logs = "" if failed is None else f" and {failed.log}"
    say(f"please send {folder / FILE}{logs} to the authors: what runs where is known from such files alone")
    return 0 if failed is None else EXIT_FAILED


def _table(outcomes: Sequence[Outcome]) -> str:
    lines = [["step", "result", "seconds", "measured"]]
    for outcome in outcomes:
        result = "FAILED" if outcome.problem else "passed before" if outcome.is_old else "passed"
        measured = outcome.measured or {}
        # Plain values first; tables of numbers stand in the file.
        tables = [name for name, value in measured.items() if isinstance(value, dict | list)]
        shown = [*(f"{name} {value}" for name, value in measured.items() if name not in tables), *tables][:_MOST_SHOWN]
        lines.append([outcome.name, result, f"{outcome.seconds:.1f}", ", ".join(shown).replace("_", " ")])
    return aligned(lines, left=(0, 1, 3))


def _document(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "passed": outcome.problem is None,
        "seconds": round(outcome.seconds, 2),
        "in_an_earlier_run": outcome.is_old,
        "measured": outcome.measured,
        "problem": outcome.problem,
        "last_lines": runner.last_lines(outcome.log) if outcome.problem else [],
    }


def _certificate(
    machine: Machine, steps: Sequence[Step], outcomes: Sequence[Outcome], birth: dict[str, Any]
) -> Certificate | None:
    """Make the certificate of what was found; None while it is not known whether every step passes that counts."""
    passed = tuple(each.name for each in outcomes if each.certifies and each.problem is None)
    failed = next((each.name for each in outcomes if each.certifies and each.problem is not None), None)
    if failed is None and len(passed) < sum(step.certifies for step in steps):
        return None
    outcome, born = "passed" if failed is None else "failed", {name: birth[name] for name in ("time", "commit")}
    return Certificate(machine=machine, outcome=outcome, steps=passed, failed_step=failed, **born)


def _shape_names(given: str) -> tuple[str, ...]:
    names = tuple(filter(None, given.split(",")))
    if not names or not set(names) <= set(SHAPE_NAMES):
        raise ConfigError(f"--shapes is {given!r}: give one or more of {', '.join(SHAPE_NAMES)}, with commas")
    return names
