"""The command line. Every command's module is imported when that command is called, and not before."""

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from efficient_rollout import __version__
from efficient_rollout.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_TERMINATED, EfficientRolloutError
from efficient_rollout.secrets import DiscreetParser

# Name -> one line of help, and the function of this package that adds the command's parser; of a command with a parser
# of its own, that runs it.
COMMANDS = {
    "train": ("train with veRL; arguments are hydra overrides", "verl_plugin.main:train"),
    "openrlhf": ("train with OpenRLHF; arguments are settings, --, and OpenRLHF's own", "openrlhf_plugin.main:launch"),
    "demo": ("see plain vLLM and self-drafting beside each other, in a minute", "bench.demo:add_demo_command"),
    "serve": ("serve a model with vLLM's own server, drafting for itself", "serve:serve"),
    "doctor": ("say what is installed, and what is wrong", "doctor:add_doctor_command"),
    "policy": ("say where an embedded policy is, or train one", "tasks.cli:add_policy_command"),
    "data": ("write the embedded task's data set", "tasks.cli:add_data_command"),
    "summary": ("print a run's metrics, a row per step", "summary:add_summary_command"),
    "report": ("write a run's page of figures", "dashboards.cli:add_report_command"),
    "dashboard": ("save a view of a tracker's runs", "dashboards.cli:add_dashboard_command"),
    "calibrate": ("fit a latency profile", "bench.calibrate:add_calibrate_command"),
    "explain": ("say what the controller would do, and why", "controller.cli:add_explain_command"),
    "gpu-check": ("prove on a GPU that drafting changes no sample; certify it", "gpu_check.cli:add_gpu_check_command"),
    "bench": ("measure rollouts side by side", "bench.cli:add_bench_command"),
    "simulate": ("replay a rollout under a rule", "simulator.cli:add_simulate_command"),
}
# To their parsers goes everything behind their names untouched, dashes and help included.
WITH_OWN_PARSER = ("train", "openrlhf", "serve")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The command's exit code; 2 after bad input, 130 after Ctrl-C.

    Raises:
        SystemExit: 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        parsed = command_parser(arguments).parse_args(arguments)
        return int(parsed.run(parsed))
    except EfficientRolloutError as error:
        sys.stderr.write(f"efficient-rollout: error: {error}\n")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write("efficient-rollout: interrupted\n")
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    # As Ctrl-C does, so that commands end the engines they started: those outlive a process that is simply gone.
    raise SystemExit(EXIT_TERMINATED)


def command_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser for these arguments: it has every command, and options only of the one that they name."""
    parser = DiscreetParser(prog="efficient-rollout", description="Faster rollouts by lossless self-drafting.")
    parser.add_argument("--version", action="version", version=f"efficient-rollout {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, (summary, target) in COMMANDS.items():
        if name != chosen:
            subparsers.add_parser(name, help=summary)
            continue
        module_name, _, function_name = target.partition(":")
        function = getattr(importlib.import_module(f"efficient_rollout.{module_name}"), function_name)
        if name in WITH_OWN_PARSER:
            command = subparsers.add_parser(name, prefix_chars="\0", add_help=False)
            command.add_argument("arguments", nargs=argparse.REMAINDER)
            command.set_defaults(run=lambda parsed, run=function: run(parsed.arguments))
        else:
            function(subparsers)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
