"""A run's files while they are written, after a restart, and with numbers that are none."""

import json
import math

import numpy as np
import pytest
from report_support import step_timelines, write_run

pytest.importorskip("yaml")

from efficient_rollout.metrics import names
from efficient_rollout.training_runs.run import as_number, read_run


def test_a_half_written_last_line_is_left_out_and_said(tmp_path):
    run = write_run(tmp_path / "run", num_steps=4)
    text = (run / "metrics.jsonl").read_text()
    for end in (len(text) - 2, len(text) - 400):
        (run / "metrics.jsonl").write_text(text[:end])
        read = read_run(run)
        assert read.steps == [1, 2, 3]
        assert "half written" in " ".join(read.notes)


def test_a_last_line_that_lacks_only_its_end_of_line_counts(tmp_path):
    run = write_run(tmp_path / "run", num_steps=4)
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text()[:-1])
    assert read_run(run).steps == [1, 2, 3, 4]
    assert read_run(run).notes == []


def test_the_newest_record_of_a_step_counts_in_the_order_of_steps(tmp_path):
    run = write_run(tmp_path / "run", num_steps=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, names.ROLLOUT_SECONDS: 99.0}) + "\n")
    read = read_run(run)
    assert read.steps == [1, 2, 3]
    assert read.values(names.ROLLOUT_SECONDS)[1] == 99.0
    assert "more than once" in " ".join(read.notes)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "1.0", True, [1.0], 10**400])
def test_what_is_no_finite_number_is_a_gap(value):
    assert math.isnan(as_number(value))


def test_a_metric_that_some_steps_lack_has_gaps_there(tmp_path):
    run = write_run(tmp_path / "run", num_steps=3)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    del records[1][names.ROLLOUT_SECONDS]
    records[2][names.ROLLOUT_SECONDS] = math.nan
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert list(np.isnan(read_run(run).values(names.ROLLOUT_SECONDS))) == [False, True, True]


def test_timelines_of_steps_of_this_run_are_read_and_others_are_said(tmp_path):
    run = write_run(tmp_path / "run", num_steps=4)
    lines = [json.dumps(step_timelines(step).to_dict()) for step in (2, 50)]
    (run / "timeline.jsonl").write_text("\n".join([*lines, "{}", '{"step": 4, "num_']) + "\n")
    read = read_run(run)
    assert list(read.timelines) == [2]
    assert read.timelines[2] == step_timelines(2)
    assert read.notes == ["2 lines of timeline.jsonl are no timelines and are left out."]


def test_what_looks_like_a_date_is_text_whatever_else_is_imported(tmp_path, monkeypatch):
    import yaml

    run = write_run(tmp_path / "run", num_steps=2)
    with (run / "config.yaml").open("a") as file:
        file.write("name: 2026-99-99\n")
    assert read_run(run).config["name"] == "2026-99-99"
    # What a package that vLLM imports does.
    monkeypatch.setitem(yaml.SafeLoader.yaml_constructors, "tag:yaml.org,2002:timestamp", lambda *_: 1 / 0)
    assert read_run(run).config["name"] == "2026-99-99"
