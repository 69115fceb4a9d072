"""What a run writes of its steps: one file a run, however often it was resumed, and numbers alone."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficient_rollout.errors import ConfigError
from efficient_rollout.metrics.rollout_record import StepTimelines
from efficient_rollout.metrics.step_file import (
    StepFiles,
    mark_checkpoint,
    one_wandb_run,
    require_free,
    run_id_of,
    set_aside,
)

BINS = [[5.0, 6.0, 4.0, 1.0]]
METRICS, TIMELINE = "metrics.jsonl", "timeline.jsonl"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def kept_steps(path: Path) -> list[int]:
    return [row["step"] for row in rows(path)]


def write(files: StepFiles, *steps: int, loss: float = 0.0) -> None:
    for step in steps:
        files.append(step, {"loss": loss}, StepTimelines.of(step, {"a": BINS}))


def saved(directory: Path, step: int, run_id: str | None) -> Path:
    """A checkpoint as both plugins leave it."""
    folder = directory / f"global_step_{step}"
    folder.mkdir(exist_ok=True)
    if run_id is not None:
        mark_checkpoint(folder, run_id)
    return folder


def test_sampled_steps_and_the_newest_are_kept(tmp_path):
    write(StepFiles(tmp_path), *range(1, 101))
    assert kept_steps(tmp_path / TIMELINE) == [1, 2, 4, 8, 16, 32, 64, 100]


def test_a_step_without_a_timeline_leaves_the_file(tmp_path):
    files = StepFiles(tmp_path)
    files.append(1, {}, StepTimelines.of(1, {}))
    assert not (tmp_path / TIMELINE).exists()
    write(files, 3)
    files.append(4, {}, StepTimelines.of(4, {}))
    assert kept_steps(tmp_path / TIMELINE) == [3]


def test_a_run_that_is_resumed_twice_is_one_file(tmp_path):
    first = StepFiles(tmp_path)
    write(first, 1, 2, 3, 4, loss=0.5)
    checkpoint = saved(tmp_path, 2, first.run_id)
    second = StepFiles(tmp_path, checkpoint)
    write(second, 3, loss=0.25)
    assert kept_steps(tmp_path / TIMELINE) == [1, 2, 3], "step 4 has not been yet"
    write(second, 4, 5, loss=0.25)
    third = StepFiles(tmp_path, saved(tmp_path, 4, second.run_id))
    assert kept_steps(tmp_path / METRICS) == [1, 2, 3, 4, 5], "until its first row, a run that resumes changes nothing"
    write(third, 5, 6, loss=0.125)
    found = rows(tmp_path / METRICS)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in found] == [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert [row["run_part"] for row in found] == [0, 0, 1, 1, 2, 2]
    assert {row["run_id"] for row in found} == {first.run_id} == {second.run_id, third.run_id}
    assert kept_steps(tmp_path / TIMELINE) == [1, 2, 4, 6]
    assert not list(tmp_path.glob("*.1.jsonl"))


def test_a_run_that_begins_anew_sets_both_files_aside(tmp_path):
    ids = []
    for loss in (0.5, 0.25, 0.125):
        files = StepFiles(tmp_path)
        ids.append(files.run_id)
        write(files, 1, 2, loss=loss)
    assert len(set(ids)) == 3
    for name, loss, run_id in zip((".1", ".2", ""), (0.5, 0.25, 0.125), ids, strict=True):
        found = rows(tmp_path / f"metrics{name}.jsonl")
        assert [(row["step"], row["loss"], row["run_id"]) for row in found] == [(1, loss, run_id), (2, loss, run_id)]
        assert kept_steps(tmp_path / f"timeline{name}.jsonl") == [1, 2]


def test_rows_without_an_id_belong_to_an_earlier_run_where_one_begins(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 1}\n')
    write(StepFiles(tmp_path), 1)
    assert kept_steps(tmp_path / METRICS) == kept_steps(tmp_path / "metrics.1.jsonl") == [1]


def test_validating_first_begins_a_run_too(tmp_path):
    for _ in range(2):
        files = StepFiles(tmp_path)
        files.append(0, {"val-core/acc": 0.5}, is_validation=True)
        write(files, 1)
    assert kept_steps(tmp_path / METRICS) == kept_steps(tmp_path / "metrics.1.jsonl") == [0, 1]


def test_validating_after_a_resume_takes_the_place_of_the_same_validation(tmp_path):
    first = StepFiles(tmp_path)
    write(first, 1, 2)
    checkpoint = saved(tmp_path, 1, first.run_id)
    for accuracy in (0.25, 0.75):
        again = StepFiles(tmp_path, checkpoint)
        again.append(1, {"val-core/acc": accuracy}, is_validation=True)
        # Until it trains: the steps after the checkpoint are all that there is of them.
        assert kept_steps(tmp_path / METRICS) == [1, 2, 1]
    write(again, 2)
    found = rows(tmp_path / METRICS)
    assert [(row["step"], row.get("is_validation"), row.get("val-core/acc")) for row in found] == [
        (1, None, None), (1, True, 0.75), (2, None, None)
    ]  # fmt: skip


def test_evaluations_between_steps_all_stay(tmp_path):
    files = StepFiles(tmp_path)
    for step in (1, 2):
        write(files, step)
        files.append(step, {"eval_acc": 0.5}, is_validation=True)
    assert [(row["step"], "eval_acc" in row) for row in rows(tmp_path / METRICS)] == [
        (1, False), (1, True), (2, False), (2, True)
    ]  # fmt: skip


def test_a_run_that_resumes_from_another_runs_checkpoint_sets_this_ones_rows_aside(tmp_path):
    first = StepFiles(tmp_path)
    write(first, 1, 2)
    checkpoint = saved(tmp_path, 2, first.run_id)
    write(StepFiles(tmp_path), 1, 2, 3)  # anew, and without a checkpoint of its own
    write(StepFiles(tmp_path, checkpoint), 3)
    assert [(row["step"], row["run_id"]) for row in rows(tmp_path / METRICS)] == [(3, first.run_id)]
    assert kept_steps(tmp_path / "metrics.2.jsonl") == [1, 2, 3]


@pytest.mark.parametrize("lies_here", [True, False])
def test_a_checkpoint_without_a_mark_belongs_to_the_directory_it_lies_in(tmp_path, lies_here):
    write(StepFiles(tmp_path / "run"), 1, 2)
    (tmp_path / "elsewhere").mkdir()
    checkpoint = saved(tmp_path / ("run" if lies_here else "elsewhere"), 2, None)
    write(StepFiles(tmp_path / "run", checkpoint), 3)
    assert kept_steps(tmp_path / "run" / METRICS) == ([1, 2, 3] if lies_here else [3])


def test_rows_without_an_id_are_gone_on_with(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    write(StepFiles(tmp_path, saved(tmp_path, 2, None)), 3)
    assert kept_steps(tmp_path / METRICS) == [1, 2, 3]


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', '{"step": 2, "loss": 0.5}'])
def test_a_torn_last_line_does_not_spoil_the_next(tmp_path, torn):
    first = StepFiles(tmp_path)
    write(first, 1)
    with (tmp_path / METRICS).open("a") as file:
        file.write(torn)
    write(StepFiles(tmp_path, saved(tmp_path, 2, first.run_id)), 3)
    assert kept_steps(tmp_path / METRICS) == ([1, 2, 3] if torn.endswith("}") else [1, 3])


HOLD = """
import sys
from pathlib import Path
from efficient_rollout.metrics.step_file import StepFiles
files = StepFiles(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_two_jobs_at_once_in_one_directory_are_refused(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            for attempt in (StepFiles, require_free):
                with pytest.raises(ConfigError, match=rf"another job writes .* \(process {other.pid} on .*own"):
                    attempt(tmp_path)
        finally:
            other.kill()
    require_free(tmp_path)
    write(StepFiles(tmp_path), 1)


def test_a_number_is_a_number_whatever_framework_logs_it(tmp_path):
    import torch

    values = {
        "int": 1, "float": 0.5, "numpy": np.float32(0.5), "array": np.array([0.5]), "count": np.int64(7),
        "tensor": torch.tensor(0.5, requires_grad=True), "one": torch.tensor([0.5], dtype=torch.bfloat16),
    }  # fmt: skip
    StepFiles(tmp_path).append(3, values)
    (row,) = rows(tmp_path / METRICS)
    assert {name: row[name] for name in values} == {
        "int": 1, "float": 0.5, "numpy": 0.5, "array": 0.5, "count": 7, "tensor": 0.5, "one": 0.5
    }  # fmt: skip
    assert all(type(row[name]) in (int, float) for name in values)


def test_what_is_no_number_is_left_out_with_one_warning(tmp_path, caplog):
    import torch

    values = {"a": torch.zeros(2), "b": {"d": 1}, "c": np.zeros(2), "d": "tensor(0.5)", "e": np.datetime64("now")}
    files = StepFiles(tmp_path / "new" / "folder")
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            files.append(step, {**values, "none": None, "loss": 0.5})
    for row in rows(tmp_path / "new" / "folder" / METRICS):
        assert row.keys() == {"step", "time", "run_id", "run_part", "loss"}
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.endswith("these are none: a, b, c, d, e")


def test_files_set_aside_together_share_a_number(tmp_path):
    paths = (tmp_path / METRICS, tmp_path / TIMELINE)
    for content in ("first", "second"):
        for path in paths:
            path.write_text(content)
        (tmp_path / TIMELINE).unlink() if content == "first" else None
        set_aside(*paths)
    assert [(tmp_path / f"metrics.{number}.jsonl").read_text() for number in (1, 2)] == ["first", "second"]
    assert (tmp_path / "timeline.2.jsonl").read_text() == "second"
    assert not (tmp_path / "timeline.1.jsonl").exists()


def test_a_checkpoint_keeps_the_id_of_its_run(tmp_path):
    mark_checkpoint(tmp_path / "missing", "some")
    assert run_id_of(tmp_path / "missing") is None
    assert run_id_of(saved(tmp_path, 1, "some")) == "some"


@pytest.mark.parametrize("users", [{}, {"WANDB_RUN_ID": "mine"}, {"WANDB_RESUME": "never"}])
def test_wandb_goes_on_with_the_run_unless_its_user_names_one(monkeypatch, users):
    import os

    names = ("WANDB_RUN_ID", "WANDB_RESUME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in users.items():
        monkeypatch.setenv(name, value)
    with one_wandb_run("ours"):
        within = {name: os.environ[name] for name in names if name in os.environ}
    assert within == (users or {"WANDB_RUN_ID": "ours", "WANDB_RESUME": "allow"})
    assert {name: os.environ[name] for name in names if name in os.environ} == users
