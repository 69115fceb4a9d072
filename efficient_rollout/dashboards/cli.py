"""`efficient-rollout report`: a run, and what it gained over a baseline, as one HTML file."""

import argparse
import sys
import webbrowser
from pathlib import Path

from efficient_rollout.dashboards.packages import require
from efficient_rollout.errors import InputFileError
from efficient_rollout.files import written_whole

REPORT_FILE = "report.html"
# Package -> module; the extra `report` has them.
_NEEDED = {"plotly": "plotly", "jinja2": "jinja2", "pyyaml": "yaml"}


def add_report_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `report`; the parsed arguments' `run` writes the page and returns the exit code."""
    parser = subparsers.add_parser("report", help="write a run's page of figures")
    parser.add_argument("run_directory", type=Path, help="trainer.default_local_dir of the run, which may go on")
    parser.add_argument("--baseline", type=Path, metavar="DIRECTORY", help="of the same recipe without drafting")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"{REPORT_FILE} in the run's directory by default")
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    parser.set_defaults(run=run_report)


def run_report(args: argparse.Namespace) -> int:
    """Write the page, whole or not at all, and print its path.

    Raises:
        MissingPackageError: What draws is not installed.
        InputFileError: A directory holds no run, the runs cannot be compared, or the file cannot be written.
    """
    require("the report", _NEEDED)
    # Not before: both need what may be missing.
    from efficient_rollout.dashboards.page import render
    from efficient_rollout.training_runs.run import read_run

    own = read_run(args.run_directory)
    baseline = None if args.baseline is None else read_run(args.baseline)
    path = (args.run_directory / REPORT_FILE if args.out is None else args.out).expanduser().resolve()
    text = render(own, baseline)
    try:
        with written_whole(path) as staged:
            staged.write_text(text, encoding="utf-8")
    except OSError as fault:
        raise InputFileError(f"cannot write {path}: {fault.strerror}; choose another file with --out") from fault
    sys.stdout.write(f"report: {path}\n")
    if args.open and not webbrowser.open(path.as_uri()):
        sys.stderr.write("efficient-rollout: no browser found to open it with\n")
    return 0
