"""What a step leaves in the run's directory."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl")

from efficient_rollout.metrics.rollout_record import Segment, StepTimelines
from efficient_rollout.metrics.rollout_stats import RolloutStats
from efficient_rollout.metrics.step_file import run_id_of
from efficient_rollout.verl_plugin import ROLLOUT_NAME, metrics
from efficient_rollout.verl_plugin.metrics import StepLogger, step_logger

BINS = [[5.0, 6.0, 4.0, 1.0]]
TRAINED = "training/global_step"


@pytest.fixture(autouse=True)
def _engines(monkeypatch) -> None:
    segments = [[Segment(RolloutStats(num_engines=1, timelines={"a": BINS}), 1.0, 3.0), Segment()]]
    monkeypatch.setattr(metrics, "collect_segments", lambda: segments)


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def job(directory: Path, **trainer: Any) -> StepLogger:
    """The logger of a job, as veRL's `Tracking` makes it."""
    options = {"default_local_dir": str(directory), "resume_mode": "auto", **trainer}
    made = step_logger({"actor_rollout_ref": {"rollout": {"name": ROLLOUT_NAME}}, "trainer": options})
    assert made is not None
    return made


def train(logger: StepLogger, *steps: int, directory: Path, save_every: int) -> None:
    """Log as veRL's trainer does, with a checkpoint where it saves one."""
    for step in steps:
        data: dict[str, Any] = {TRAINED: step}
        if step % save_every == 0:
            (directory / f"global_step_{step}").mkdir(exist_ok=True)
            (directory / "latest_checkpointed_iteration.txt").write_text(str(step))
            data["timing_s/save_checkpoint"] = 0.5
        logger.log(data, step)


def test_a_logged_step_writes_its_metrics_and_its_timeline(tmp_path):
    StepLogger(tmp_path).log({}, 7)
    assert [row["step"] for row in rows(tmp_path)] == [7]
    line = json.loads((tmp_path / "timeline.jsonl").read_text())
    assert StepTimelines.from_dict(line) == StepTimelines.of(7, {"a": BINS})
    assert line["engines"] == [[[0.0, 1.0, 4.0, 1.0]]]


def test_jobs_that_resume_by_themselves_are_one_run(tmp_path):
    first = job(tmp_path)
    first.log({"val-core/acc": 0.5}, 0)
    train(first, 1, 2, 3, directory=tmp_path, save_every=2)
    assert run_id_of(tmp_path / "global_step_2") == first.run_id
    second = job(tmp_path)
    second.log({"val-core/acc": 0.75}, 2)
    train(second, 3, 4, directory=tmp_path, save_every=2)
    assert second.run_id == first.run_id
    assert [(row["step"], TRAINED in row, row["run_part"]) for row in rows(tmp_path)] == [
        (0, False, 0), (1, True, 0), (2, True, 0), (2, False, 1), (3, True, 1), (4, True, 1)
    ]  # fmt: skip


def test_a_job_that_does_not_resume_is_another_run(tmp_path):
    first = job(tmp_path)
    train(first, 1, 2, directory=tmp_path, save_every=2)
    second = job(tmp_path, resume_mode="disable")
    train(second, 1, directory=tmp_path, save_every=100)
    assert second.run_id != first.run_id
    assert [row["step"] for row in rows(tmp_path)] == [1]
    # veRL resumes from what the first one saved: its rows are set aside, and the second's are not taken for them.
    third = job(tmp_path)
    train(third, 3, directory=tmp_path, save_every=100)
    assert [(row["step"], row["run_id"]) for row in rows(tmp_path)] == [(3, first.run_id)]


def test_a_checkpoint_that_is_named_belongs_to_its_own_run(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        train(job(tmp_path / name), 1, 2, directory=tmp_path / name, save_every=2)
    named = str(tmp_path / "one" / "global_step_2")
    for name, steps in (("one", [1, 2, 3]), ("other", [3])):
        goes_on = job(tmp_path / name, resume_mode="resume_path", resume_from_path=named)
        train(goes_on, 3, directory=tmp_path / name, save_every=100)
        assert [row["step"] for row in rows(tmp_path / name)] == steps
