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
from efficient_rollout.gpu_check.child import command
from efficient_rollout.gpu_check.plan import EXIT_FAILED, KERNEL_STEPS, QUICK_STEPS, STEPS, Step
from efficient_rollout.gpu_check.runner import Outcome
from efficient_rollout.provenance import result_document
from efficient_rollout.tables import aligned

SCHEMA_VERSION = 1
FILE = "gpu_check.json"
_MOST_SHOWN = 6
SHAPE_NAMES = ("7b", "8b", "qwen3-8b", "14b")
_DEFAULT_SHAPES = "7b,8b,14b"


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
    parser.add_argument("--shapes", default=_DEFAULT_SHAPES, help=f"of {', '.join(SHAPE_NAMES)}")
    parser.set_defaults(run=run_gpu_check)


def run_gpu_check(args: argparse.Namespace) -> int:
    """Run the steps, and write what they found. Return 1 where one failed."""

    def job() -> int:
        from efficient_rollout.gpu_check import start

        shapes, folder = shape_names(args.shapes), args.out.resolve()
        if args.kernels:
            folder, shapes, machine = folder / "kernels", (), start.machine_of_torch()
        else:
            machine = start.machine_to_check()
        with runner.locked(folder):
            return check(args, machine, steps_of(args), folder, shapes)

    return exit_code_of("gpu-check", job)


def steps_of(args: argparse.Namespace) -> list[Step]:
    """Return the steps that the options leave."""
    if args.kernels:
        return list(KERNEL_STEPS)
    if args.quick:
        return list(QUICK_STEPS)
    return [step for step in STEPS if step.certifies or not args.skip_measuring]


def check(
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
        say(f"step {failed.step.name} FAILED: {failed.problem}. The end of {failed.log}:\n{lines}")
    certificate = _certificate(machine, steps, outcomes, document["provenance"])
    if certificate is not None and not args.kernels:
        with runner.disk_errors("the certificate", certificate_path(machine).parent):
            certificate.write(certificate_path(machine))
        say(f"certificate ({certificate.outcome}): {certificate_path(machine)}")
    logs = "" if failed is None else f" and {failed.log}"
    say(f"please send {folder / FILE}{logs} to the authors: what runs where is known from such files alone")
    return 0 if failed is None else EXIT_FAILED


def _table(outcomes: Sequence[Outcome]) -> str:
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


def _document(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.step.name,
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
    counted = [outcome for outcome in outcomes if outcome.step.certifies]
    passed = tuple(outcome.step.name for outcome in counted if outcome.problem is None)
    failed = next((outcome.step.name for outcome in counted if outcome.problem is not None), None)
    if failed is None and passed != tuple(step.name for step in steps if step.certifies):
        return None
    return Certificate(
        machine=machine,
        outcome="passed" if failed is None else "failed",
        steps=passed,
        failed_step=failed,
        time=birth["time"],
        commit=birth["commit"],
    )


def shape_names(given: str) -> tuple[str, ...]:
    """Return the names of shapes, as `--shapes` gives them.

    Raises:
        ConfigError: There is none of a name.
    """
    names = tuple(filter(None, given.split(",")))
    unknown = [name for name in names if name not in SHAPE_NAMES]
    if unknown or not names:
        raise ConfigError(f"--shapes is {given!r}: give one or more of {', '.join(SHAPE_NAMES)}, with commas")
    return names
