"""What a run writes of its steps."""

import json

from efficient_rollout.metrics.step_file import StepFiles, set_aside
from efficient_rollout.metrics.timeline import StepTimelines

BINS = [[5.0, 6.0, 4.0, 1.0]]


def kept_steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_sampled_steps_and_the_newest_are_kept(tmp_path):
    files = StepFiles(tmp_path)
    for step in range(1, 101):
        files.add_timelines(StepTimelines.of(step, {"a": BINS}))
    assert kept_steps(tmp_path / "timeline.jsonl") == [1, 2, 4, 8, 16, 32, 64, 100]


def test_a_step_without_a_timeline_leaves_the_file_and_an_earlier_run_does_not(tmp_path):
    path = tmp_path / "timeline.jsonl"
    path.write_text("of an earlier run\n")
    files = StepFiles(tmp_path)
    assert not path.exists()
    files.add_timelines(StepTimelines.of(1, {}))
    assert not path.exists()
    files.add_timelines(StepTimelines.of(3, {"a": BINS}))
    files.add_timelines(StepTimelines.of(4, {}))
    assert kept_steps(path) == [3]


def test_records_are_json_of_whatever_type_a_framework_logs(tmp_path):
    import numpy as np

    files = StepFiles(tmp_path / "new" / "folder")
    files.append(3, {"a": np.float32(0.5), "b": None, "c": {"d": 1}, "e": np.zeros(2)})
    record = json.loads((tmp_path / "new" / "folder" / "metrics.jsonl").read_text())
    assert (record["step"], record["a"], record["b"]) == (3, 0.5, None)
    assert isinstance(record["c"], str)
    assert isinstance(record["e"], str)


def test_an_earlier_runs_metrics_are_kept_under_another_name(tmp_path):
    for content in ("first", "second"):
        (tmp_path / "metrics.jsonl").write_text(content)
        set_aside(tmp_path / "metrics.jsonl")
    assert [(tmp_path / f"metrics.{number}.jsonl").read_text() for number in (1, 2)] == ["first", "second"]
