"""What a step leaves in the run's directory."""

import json

import pytest

pytest.importorskip("verl")

from efficient_rollout.metrics.rollout_record import Segment
from efficient_rollout.metrics.rollout_stats import RolloutStats
from efficient_rollout.metrics.timeline import StepTimelines
from efficient_rollout.verl_plugin import metrics
from efficient_rollout.verl_plugin.metrics import StepLogger

BINS = [[5.0, 6.0, 4.0, 1.0]]


def test_a_logged_step_writes_its_metrics_and_its_timeline(tmp_path, monkeypatch):
    segments = [[Segment(RolloutStats(num_engines=1, timelines={"a": BINS}), 1.0, 3.0), Segment()]]
    monkeypatch.setattr(metrics, "collect_segments", lambda: segments)
    StepLogger(tmp_path).log({}, 7)
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 7
    line = json.loads((tmp_path / "timeline.jsonl").read_text())
    assert StepTimelines.from_dict(line) == StepTimelines.of(7, {"a": BINS})
    assert line["engines"] == [[[0.0, 1.0, 4.0, 1.0]]]
