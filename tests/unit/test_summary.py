"""The table of a run."""

import json
from pathlib import Path

import pytest

from efficient_rollout.__main__ import main
from efficient_rollout.metrics import names
from efficient_rollout.summary import read_steps, render_table

STEP = {
    "step": 3,
    "critic/score/mean": 0.5,
    "response_length/mean": 70.25,
    "response_length/max": 201,
    names.ROLLOUT_SECONDS: 4.125,
    names.TOKENS_PER_SECOND: 1234.4,
    names.MEAN_ACCEPTED_LENGTH: 3.5,
    names.SPECULATIVE_TICK_SHARE: 0.25,
    names.REQUANTIZE_SECONDS: 0.0625,
    names.WEIGHT_SYNC_SECONDS: 0.75,
}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_row_shows_every_number_in_its_column() -> None:
    *_, row = render_table([STEP]).splitlines()
    assert row.split() == ["3", "0.500", "70.2", "201", "4.12", "1234", "3.50", "25%", "0.062", "0.750"]


def test_a_number_that_was_not_reported_is_a_dash() -> None:
    *_, row = render_table([{"step": 1, "critic/score/mean": 0.5}]).splitlines()
    assert row.split() == ["1", "0.500", *["-"] * 8]


def test_columns_line_up() -> None:
    lines = render_table([STEP, STEP | {"step": 10, "response_length/max": 12345}]).splitlines()
    assert len({len(line) for line in lines[1:]}) == 1


def test_a_record_of_validation_alone_is_no_step(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", {"step": 0, "val-core/acc": 0.4}, STEP)
    assert [step["step"] for step in read_steps(path)] == [3]


def test_command_prints_the_table_and_where_the_rest_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "metrics.jsonl", STEP)
    (tmp_path / "train.log").write_text("")
    assert main(["summary", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert render_table([STEP]) in printed
    assert str(tmp_path / "metrics.jsonl") in printed
    assert str(tmp_path / "train.log") in printed
    assert "config.yaml" not in printed


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "does not exist"),
        ("", "no training step"),
        ('{"step": 0, "val-core/acc": 1}\n', "no training step"),
        ('{"step": 1}\n{"st', "line 2: not JSON"),
        ("[1]\n", "line 1: not the record of a step"),
    ],
)
def test_bad_file_is_one_clear_error(
    text: str | None, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    assert main(["summary", str(tmp_path)]) == 2
    assert named in capsys.readouterr().err
