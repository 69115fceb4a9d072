"""What a step leaves in the run's directory."""

import json

import pytest

pytest.importorskip("verl")

from efficient_rollout.metrics.rollout_stats import RolloutStats
from efficient_rollout.metrics.timeline import StepTimelines
from efficient_rollout.verl_plugin import metrics
from efficient_rollout.verl_plugin.metrics import StepLogger, TimelineFile
from efficient_rollout.verl_plugin.rollout_record import Segment

BINS = [[5.0, 6.0, 4.0, 1.0]]


def kept_steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_sampled_steps_and_the_newest_are_kept(tmp_path):
    file = TimelineFile(tmp_path / "timeline.jsonl")
    for step in range(1, 101):
        file.add(StepTimelines.of(step, {"a": BINS}))
    assert kept_steps(tmp_path / "timeline.jsonl") == [1, 2, 4, 8, 16, 32, 64, 100]


def test_a_step_without_a_timeline_leaves_the_file_and_an_earlier_run_does_not(tmp_path):
    path = tmp_path / "timeline.jsonl"
    path.write_text("of an earlier run\n")
    file = TimelineFile(path)
    assert not path.exists()
    file.add(StepTimelines.of(1, {}))
    assert not path.exists()
    file.add(StepTimelines.of(3, {"a": BINS}))
    file.add(StepTimelines.of(4, {}))
    assert kept_steps(path) == [3]


def test_a_logged_step_writes_its_metrics_and_its_timeline(tmp_path, monkeypatch):
    segments = [[Segment(RolloutStats(num_engines=1, timelines={"a": BINS}), 1.0, 3.0), Segment()]]
    monkeypatch.setattr(metrics, "collect_segments", lambda: segments)
    StepLogger(tmp_path / "metrics.jsonl").log({}, 7)
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 7
    line = json.loads((tmp_path / "timeline.jsonl").read_text())
    assert StepTimelines.from_dict(line) == StepTimelines.of(7, {"a": BINS})
    assert line["engines"] == [[[0.0, 1.0, 4.0, 1.0]]]
