"""`efficient-rollout report`: a run, and what it gained over a baseline, as one HTML file; anew after each step.

And `efficient-rollout dashboard wandb`: save the view of a project's runs.
"""

import argparse
import re
import sys
import time
import webbrowser
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from efficient_rollout.errors import ConfigError, EfficientRolloutError, InputFileError, MissingPackageError
from efficient_rollout.files import written_whole
from efficient_rollout.metrics.rollout_record import TIMELINE_FILE
from efficient_rollout.metrics.step_file import FILE_NAME

REPORT_FILE = "report.html"
# Package -> module; the extra `report` has them.
REPORT_PACKAGES = {"plotly": "plotly", "jinja2": "jinja2", "pyyaml": "yaml"}
# Between two looks at a run's files; and at least so many times as long as a page took, which is seconds for long runs.
_LOOK_SECONDS, _REST = 2.0, 4.0
# What wandb allows in the names of teams, projects and runs.
_NAME = re.compile(r"[\w.-]+", re.ASCII)


def add_report_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `report`, which writes the page."""
    parser = subparsers.add_parser("report", help="write a run's page of figures")
    parser.add_argument("run_directory", type=Path, help="trainer.default_local_dir of the run, which may go on")
    parser.add_argument("--baseline", type=Path, metavar="DIRECTORY", help="of the same recipe without drafting")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"{REPORT_FILE} in the run's directory by default")
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    parser.add_argument("--watch", action="store_true", help="write it anew after each step, until Ctrl-C")
    parser.set_defaults(run=run_report)


def run_report(args: argparse.Namespace) -> int:
    """Write the page, whole or not at all, and print its path; under `--watch` again after each step, until Ctrl-C.

    Raises:
        MissingPackageError: What draws is not installed.
        InputFileError: A directory holds no run, the runs cannot be compared, or the file cannot be written. Under
            `--watch` only where there is no directory: the rest may come right with the next step.
    """
    require("the report", REPORT_PACKAGES)
    path = (args.run_directory / REPORT_FILE if args.out is None else args.out).expanduser().resolve()
    if args.watch:
        with suppress(KeyboardInterrupt):
            _watch(args, path)
        return 0
    _write(args, path)
    sys.stdout.write(f"report: {path}\n")
    _show(args, path)
    return 0


def require(what: str, modules: Mapping[str, str]) -> None:
    """Raise unless everything is installed that `what` needs.

    Raises:
        MissingPackageError: Names the packages whose modules are not there, and what to install.
    """
    missing = [package for package, module in modules.items() if find_spec(module) is None]
    if missing:
        raise MissingPackageError(f"{what} needs {', '.join(missing)}: pip install {' '.join(missing)}")


def _write(args: argparse.Namespace, path: Path) -> None:
    # Not before: both need what may be missing.
    from efficient_rollout.dashboards.page import render
    from efficient_rollout.training_runs.run import read_run

    own = read_run(args.run_directory)
    baseline = None if args.baseline is None else read_run(args.baseline)
    text = render(own, baseline, is_watched=args.watch)
    try:
        with written_whole(path) as staged:
            staged.write_text(text, encoding="utf-8")
    except OSError as fault:
        raise InputFileError(f"cannot write {path}: {fault.strerror}; choose another file with --out") from fault


def _show(args: argparse.Namespace, path: Path) -> None:
    if args.open and not webbrowser.open(path.as_uri()):
        sys.stderr.write("efficient-rollout: no browser found to open it with\n")


def _watch(args: argparse.Namespace, path: Path) -> None:
    """Write the page whenever the runs' files have changed; a fault is told once, until a page is written again."""
    directories = [one for one in (args.run_directory, args.baseline) if one is not None]
    for directory in directories:
        if not directory.is_dir():
            raise InputFileError(f"{directory} is no directory: name the run's (trainer.default_local_dir)")
    sys.stdout.write(f"report: {path}, anew after each step; Ctrl-C ends it\n")
    sys.stdout.flush()
    told, seen = "", None
    while True:
        state = [_state(directory / name) for directory in directories for name in (FILE_NAME, TIMELINE_FILE)]
        start = time.monotonic()
        # A page that could not be written is tried again: a disk that was full may have room.
        if state != seen or told:
            seen, before, told = state, told, ""
            try:
                _write(args, path)
            except EfficientRolloutError as fault:
                told = str(fault)
            if told not in ("", before):
                sys.stderr.write(f"efficient-rollout: {told}. Trying again; a page that was written before stays\n")
                sys.stderr.flush()
            if not told:
                _show(args, path)
                args.open = False  # once is enough
        time.sleep(max(_LOOK_SECONDS, _REST * (time.monotonic() - start)))


def _state(path: Path) -> tuple[int, int]:
    """Return what changes with each step of a file; zeros where there is none yet."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def add_dashboard_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `dashboard`, which saves the view."""
    parser = subparsers.add_parser("dashboard", help="save a view of a tracker's runs")
    trackers = parser.add_subparsers(dest="tracker", metavar="TRACKER", required=True)
    wandb = trackers.add_parser("wandb", help="a saved view of a wandb project; needs a login there")
    wandb.add_argument("--entity", required=True, help="team or user")
    wandb.add_argument("--project", required=True, help="of the runs")
    wandb.add_argument("--baseline", metavar="RUN", help="id of the run that the others are compared with")
    wandb.add_argument("--framework", choices=["verl", "openrlhf"], default="verl", help="that made the runs")
    wandb.set_defaults(run=save_wandb_view)


def save_wandb_view(args: argparse.Namespace) -> int:
    """Build the view, save it, and print its address.

    Raises:
        MissingPackageError: `wandb` or `wandb-workspaces` is not installed.
        ConfigError: A name is none of wandb's, or wandb did not take the view: no login, no such project, no network.
    """
    for option in ("entity", "project", "baseline"):
        value = getattr(args, option)
        if value is not None and not _NAME.fullmatch(value):
            raise ConfigError(f"--{option} is {value!r}: wandb's names have letters, digits, and '_', '-', '.' only")
    require("the view", {"wandb": "wandb", "wandb-workspaces": "wandb_workspaces"})
    from efficient_rollout.dashboards.wandb_view import build_view

    view = build_view(args.entity, args.project, framework=args.framework, baseline=args.baseline)
    try:
        view.save()
    except Exception as error:
        # wandb raises errors of its own, of its HTTP library, and of its query language's.
        raise ConfigError(
            f"wandb did not take the view of {args.entity}/{args.project} ({type(error).__name__}: {error}). Log in "
            "with `wandb login`; the project must exist there: runs made with WANDB_MODE=offline come into it by "
            "`wandb sync RUN_DIRECTORY/wandb/offline-run-*`. Then give this command again"
        ) from error
    sys.stdout.write(f"view: {view.url}\n")
    return 0
