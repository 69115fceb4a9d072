"""Runs as veRL and this package write them, for the tests of the report."""

import json
import random
from pathlib import Path
from typing import Any

import yaml

from efficient_rollout.controller.tick import TickSpan
from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_record import Segment, StepTimelines, step_metrics
from efficient_rollout.metrics.rollout_stats import RolloutStats
from efficient_rollout.metrics.step_file import StepFiles, mark_checkpoint
from efficient_rollout.metrics.timeline import Lane, LaneRecorder, add_tick

CONFIG = {
    "actor_rollout_ref": {
        "model": {"path": "policies/small"},
        "actor": {"optim": {"lr": 1e-5}, "ppo_mini_batch_size": 16},
        "rollout": {"n": 4, "temperature": 1.0, "enforce_eager": True},
    },
    "algorithm": {"adv_estimator": "grpo"},
    "data": {"train_batch_size": 16, "train_files": "runs/a/data/train.parquet", "max_response_length": 256},
}
# What veRL's synchronous trainer logged for a step of GRPO on a CPU: its names, and how the parts share the step.
TIMINGS = {"gen": 0.5, "reward": 0.001, "old_log_prob": 0.1, "ref": 0.08, "adv": 0.002, "update_actor": 0.25,
           "update_weights": 0.04}  # fmt: skip


def step_record(step: int, *, speed: float, drafting: bool, draw: random.Random) -> dict[str, Any]:
    """One line of `metrics.jsonl`; `speed` is in tokens a second, about."""
    stats = RolloutStats(
        num_engines=1, num_ticks=200, num_generated_tokens=draw.randint(4500, 5500), num_weight_syncs=1,
        weight_sync_seconds=0.21 + 0.02 * draw.random(), requantize_seconds=0.05 if drafting else 0.0,
    )  # fmt: skip
    if drafting:
        stats.num_speculative_ticks = stats.num_verify_passes = 150
        stats.drafted_per_position = [150, 150, 140, 120]
        stats.accepted_per_position = [draw.randint(low - 8, low) for low in (140, 128, 108, 84)]
        stats.num_draft_tokens = sum(stats.drafted_per_position)
        stats.num_accepted_tokens = sum(stats.accepted_per_position)
        stats.num_draft_passes, stats.num_copies, stats.num_copies_kept = 450, 400, 100
        stats.ticks_by_reason = {"below_threshold": 150, "above_threshold": 42, "exploring": 8}
        stats.drafter_bytes, stats.draft_seconds, stats.packed_weight_share = 14_500_000, 0.9, 1.0
        stats.predicted_plain_seconds, stats.predicted_tick_seconds = 3.1, 1.9
        stats.measured_plain_seconds, stats.measured_tick_seconds = 3.0, 1.8 + 0.2 * draw.random()
    rollout_seconds = stats.num_generated_tokens / (speed * draw.uniform(0.95, 1.05)) * (3 if step == 1 else 1)
    step_seconds = rollout_seconds + 4.0
    reward = min(1.0, 0.4 + 0.3 * step / (step + 50) + draw.uniform(-0.05, 0.05))
    return {
        "step": step,
        "time": 1.7e9 + step,
        "critic/score/mean": reward,
        "critic/score/min": 0.0,
        "critic/score/max": 1.0,
        "response_length/mean": 70.0,
        "response_length/max": 256,
        "training/rollout_probs_diff_mean": 1e-6 * draw.uniform(1, 2),
        **{f"timing_s/{name}": share * 4.0 for name, share in TIMINGS.items()},
        "timing_s/gen": rollout_seconds,
        "timing_s/step": step_seconds,
        "timing_s/agent_loop/generate_sequences/max": rollout_seconds,
        **stats.to_metrics(rollout_seconds=rollout_seconds),
    }


def step_timelines(step: int, *, num_engines: int = 1, num_requests: int = 32) -> StepTimelines:
    """A rollout of 32 requests that ends one request after the other, with drafts for the last 8."""
    engines, lanes = {}, {}
    for engine in range(num_engines):
        draw, bins, clock = random.Random(step * 100 + engine), [], [50.0]
        recorder, ended = LaneRecorder(lambda clock=clock: clock[0]), []
        ends = sorted(draw.randint(20, 120) + (900 if place == 0 else 0) for place in range(num_requests))
        recorder.begin(map(str, range(num_requests)))
        for tick in range(ends[-1]):
            running = sum(end > tick for end in ends)
            length = 0 if running > 8 else 4 if running > 2 else 3
            clock[0] += 0.010 + 0.001 * running
            add_tick(bins, TickSpan(end_s=clock[0], seconds=0.010 + 0.001 * running, num_requests=running,
                                    num_draft_tokens=length))  # fmt: skip
            recorder.end_tick()
            ended += _tick_of_lanes(recorder, ends, tick, length, draw)
        engines[str(engine)], lanes[str(engine)] = bins, ended
    return StepTimelines.of(step, engines, lanes, num_engines * num_requests)


def _tick_of_lanes(recorder: LaneRecorder, ends: list[int], tick: int, length: int, draw: random.Random) -> list[Lane]:
    """What the scheduler tells of each request; the lanes of those that end."""
    found = []
    for request, end in enumerate(ends):
        if end > tick and length:
            recorder.add_pass(str(request), length, draw.randint(0, length))
        if end == tick + 1 and (lane := recorder.end(str(request), 2 * end)) is not None:
            found.append(lane)
    return found


def write_run(
    directory: Path, *, num_steps: int = 12, speed: float = 1500.0, drafting: bool = True, seed: int = 0, **config: Any
) -> Path:
    """A whole run directory; `config` replaces top-level keys of the configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    records = [step_record(step, speed=speed, drafting=drafting, draw=draw) for step in range(1, num_steps + 1)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (directory / "config.yaml").write_text(yaml.safe_dump(CONFIG | config))
    provenance = {"argv": ["efficient-rollout", "train"], "hardware": {"cpu": "some", "cores": 2}, "commit": "0" * 40}
    (directory / "provenance.json").write_text(json.dumps(provenance))
    if drafting:
        sampled = [step for step in (1, 2, 4, 8, num_steps) if step <= num_steps]
        lines = [json.dumps(step_timelines(step).to_dict()) + "\n" for step in dict.fromkeys(sampled)]
        (directory / "timeline.jsonl").write_text("".join(lines))
    return directory


def without_ours(record: dict[str, Any]) -> dict[str, Any]:
    """A record as stock veRL would write it."""
    return {name: value for name, value in record.items() if not name.startswith(names.PREFIX)}


def write_troubled_run(directory: Path, *, framework: str = "verl", num_engines: int = 4) -> Path:
    """A run as this package's own writer leaves it, with everything that happens to a long one.

    8 steps, resumed before step 6; step 5's line is lost; an engine is gone from step 7 on; evaluated at 0, 4 and 8.
    """
    first = StepFiles(directory)
    if framework == "verl":
        first.append(0, {"val-core/task/acc": 0.25}, is_validation=True)
    for files, steps in ((first, range(1, 5)), (StepFiles(directory, marked(directory, 5, first.run_id)), range(6, 9))):
        for step in steps:
            segments = [
                [Segment(stats, 100.0 * step, 100.0 * step + 4.0 + engine)]
                for engine, stats in enumerate(_stats(step, num_engines - (step > 6)))
            ]
            known = {"critic/score/mean": 0.5, "timing_s/step": 12.0, "timing_s/gen": 8.0, "timing_s/update_actor": 3.0}
            if framework == "openrlhf":
                known = {"rollout/reward_mean": 0.5, "timing/step_total": 12.0, "timing/generation": 8.0}
            evaluated = {"val-core/task/acc": 0.25 + step / 16} if framework == "verl" and step % 4 == 0 else {}
            files.append(step, {**known, **evaluated, **step_metrics(segments, validated=False)})
            if framework == "openrlhf" and step % 4 == 0:
                files.append(step, {"eval_task_pass1": 0.25 + step / 16, "eval_num_samples": 8.0}, is_validation=True)
    return directory


def _stats(step: int, num_engines: int) -> list[RolloutStats]:
    return [
        RolloutStats(
            num_engines=1, num_ticks=100, num_speculative_ticks=50, num_generated_tokens=1000 + step,
            num_verify_passes=50, num_draft_tokens=100, num_accepted_tokens=60, drafted_per_position=[50, 50],
            accepted_per_position=[35, 25], draft_seconds=0.5, weight_sync_seconds=0.25, num_weight_syncs=1,
            requantize_seconds=0.125,
        )
        for _ in range(num_engines)
    ]  # fmt: skip


def marked(directory: Path, step: int, run_id: str) -> Path:
    """A checkpoint of a run."""
    folder = directory / f"global_step_{step}"
    folder.mkdir()
    mark_checkpoint(folder, run_id)
    return folder
