"""Jobs of `efficient-rollout train`, and of veRL's own entry point, for the tests."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from job_support import log_of, start_job

from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_record import VALIDATION_PREFIX, StepTimelines
from efficient_rollout.metrics.timeline import MAX_BINS, NUM_TOKENS, parts_of, seconds_by_length
from efficient_rollout.verl_plugin.compose import config_dir

# bfloat16 rounding between two implementations of the same policy: 1.5e-3 to 2.4e-3 were measured on the nano
# policy. An engine that missed one weight sync is caught by the unsynced control in test_weight_sync.py.
MAX_PROBABILITY_DIFFERENCE = 5e-3
MAX_KL = 2e-3


@dataclass(frozen=True)
class Run:
    """A finished run: its `trainer.default_local_dir`, and everything printed.

    By step: records of its metrics file that trained, those that validated, and what veRL's own file logger wrote.
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
    return read_run(directory, log)


def read_run(directory: Path, log: str) -> Run:
    """What a run wrote until now."""
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


def assert_reported(run: Run) -> None:
    """Our metrics, in veRL's own logger and in the file, every step."""
    for step, metrics in run.steps.items():
        ours = {key: value for key, value in metrics.items() if key.startswith(names.PREFIX)}
        for key in ours:
            plain = names.PREFIX + key.removeprefix(VALIDATION_PREFIX).removeprefix(names.PREFIX)
            assert names.is_declared(plain), key
        assert ours.items() <= run.tracked[step].items()
        assert metrics[names.NUM_ENGINES] == 1
        assert metrics[names.ROLLOUT_SECONDS] > 0
        assert metrics[names.GENERATED_TOKENS] > 0
        assert metrics[names.WEIGHT_SYNC_SECONDS] > 0, "every step syncs its weights"
        assert metrics[names.DRAFTER_FAULTS] == 0
        assert metrics[names.STALE_DRAFTER] == 0
        assert {"critic/score/mean", "response_length/mean", "response_length/max"} <= metrics.keys()


def assert_drafted(run: Run, *, num_responses: int) -> None:
    """Drafts were requantized and accepted in every step, and every response was counted once."""
    for metrics in run.steps.values():
        assert metrics[names.SPECULATIVE_TICK_SHARE] > 0.5
        assert metrics[names.MEAN_ACCEPTED_LENGTH] > 3.0
        assert metrics[names.REQUANTIZE_SECONDS] > 0
        # The engine also emits the token that ends a response.
        responses = metrics["response_length/mean"] * num_responses
        assert metrics[names.GENERATED_TOKENS] == pytest.approx(responses, rel=0.15)


def assert_timed(run: Run) -> None:
    """Every step has a timeline that fits its rollout."""
    lines = (run.directory / "timeline.jsonl").read_text().splitlines()
    timelines = {item.step: item for item in (StepTimelines.from_dict(json.loads(line)) for line in lines)}
    assert sorted(timelines) == sorted(run.steps)
    for step, item in timelines.items():
        (bins,) = item.engines
        assert len(bins) <= MAX_BINS
        seconds = seconds_by_length(bins)
        assert 0.0 < sum(seconds) <= run.steps[step][names.ROLLOUT_SECONDS]
        assert sum(seconds[1:]) > 0.0, "it drafted"
        (lanes,) = item.lanes
        assert len(lanes) == item.num_responses
        assert sum(lane[NUM_TOKENS] for lane in lanes) == run.steps[step][names.GENERATED_TOKENS]
        assert all(any(parts_of(lane)) for lane in lanes)
