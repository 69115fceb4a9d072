"""Jobs of `efficient-rollout train`, and of veRL's own entry point, for the tests."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job_support import log_of, start_job

from efficient_rollout.verl_plugin.compose import config_dir

# bfloat16 rounding between two implementations of the same policy: 1.5e-3 to 2.4e-3 were measured on the nano
# policy. An engine that missed one weight sync is caught by the unsynced control in test_weight_sync.py.
MAX_PROBABILITY_DIFFERENCE = 5e-3
MAX_KL = 2e-3


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        directory: Its `trainer.default_local_dir`.
        steps: Records of its metrics file that trained, by step.
        validations: Records that validated, by step.
        tracked: What veRL's own file logger wrote, by step.
        log: Everything printed.
    """

    directory: Path
    steps: dict[int, dict[str, Any]]
    validations: dict[int, dict[str, Any]]
    tracked: dict[int, dict[str, Any]]
    log: str


OURS = ("-m", "efficient_rollout", "train")
STOCK = ("-m", "verl.trainer.main_ppo", "--config-dir", str(config_dir()), "--config-name", "efficient_rollout")


def start(overrides: Sequence[str], directory: Path, command: Sequence[str] = OURS) -> subprocess.Popen:
    """Start a job in a session of its own, its output in `directory/train.log`."""
    return start_job([*command, f"trainer.default_local_dir={directory}", *overrides], directory)


def train(overrides: Sequence[str], directory: Path, command: Sequence[str] = OURS, loggers: Sequence[str] = ()) -> Run:
    """Run to the end, with these of veRL's loggers beside the console and a file; a failure shows the log's end."""
    process = start([*overrides, f"trainer.logger=[{','.join(('console', 'file', *loggers))}]"], directory, command)
    log = log_of(process, directory)
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    (tracked_file,) = (directory / "efficient_rollout").glob("*.jsonl")
    tracked = [json.loads(line) for line in tracked_file.read_text().splitlines()]
    return Run(
        directory=directory,
        steps={record["step"]: record for record in records if "training/global_step" in record},
        validations={record["step"]: record for record in records if any(key.startswith("val-") for key in record)},
        tracked={record["step"]: record["data"] for record in tracked},
        log=log,
    )


def assert_engine_follows_trainer(run: Run, *, steps: Sequence[int]) -> None:
    """veRL's own comparison of the engine's log-probabilities with the trainer's, at these steps."""
    for step in steps:
        metrics = run.steps[step]
        assert metrics["training/rollout_probs_diff_valid"] == 1
        assert metrics["training/rollout_probs_diff_mean"] < MAX_PROBABILITY_DIFFERENCE
        assert abs(metrics["rollout_corr/kl"]) < MAX_KL
        assert metrics["training/rollout_actor_probs_pearson_corr"] > 0.999
