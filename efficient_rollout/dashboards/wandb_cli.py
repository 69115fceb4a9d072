"""`efficient-rollout dashboard wandb`: save the view of a project's runs."""

import argparse
import re
import sys

from efficient_rollout.dashboards.packages import require
from efficient_rollout.errors import ConfigError

# What wandb allows in the names of teams, projects and runs.
_NAME = re.compile(r"[\w.-]+", re.ASCII)


def add_dashboard_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `dashboard`; the parsed arguments' `run` saves the view and returns the exit code."""
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
