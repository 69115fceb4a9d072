"""Which runs may be compared."""

from pathlib import Path

import pytest
from report_support import CONFIG, write_run

pytest.importorskip("yaml")

from efficient_rollout.errors import InputFileError
from efficient_rollout.training_runs.recipe import comparison_notes
from efficient_rollout.training_runs.run import read_run

ROLLOUT = CONFIG["actor_rollout_ref"]


def notes(tmp_path: Path, **baseline: object) -> list[str]:
    own, other = write_run(tmp_path / "own", num_steps=2), write_run(tmp_path / "other", num_steps=2, **baseline)
    return comparison_notes(read_run(own), read_run(other))


def test_one_recipe_in_two_directories_is_one_recipe(tmp_path):
    data = CONFIG["data"] | {"train_files": "runs/b/data/train.parquet"}
    assert notes(tmp_path, data=data, trainer={"default_local_dir": "runs/b"}) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"actor_rollout_ref": ROLLOUT | {"model": {"path": "policies/nano"}}}, "actor_rollout_ref.model.path"),
        ({"data": CONFIG["data"] | {"train_batch_size": 32}}, "data.train_batch_size (16 here, 32 in the baseline)"),
        ({"data": CONFIG["data"] | {"train_files": "runs/b/other.parquet"}}, "data.train_files"),
        ({"actor_rollout_ref": {"model": {"path": "policies/small"}}}, "rollout.n (4 here, not set in the baseline)"),
    ],
)
def test_another_recipe_is_refused_by_its_key(tmp_path, change, named):
    with pytest.raises(InputFileError) as caught:
        notes(tmp_path, **change)
    assert named in str(caught.value)


def test_what_else_bears_on_speed_is_named(tmp_path):
    compiled = ROLLOUT | {"rollout": ROLLOUT["rollout"] | {"enforce_eager": False}}
    assert notes(tmp_path, actor_rollout_ref=compiled) == [
        "The runs differ in actor_rollout_ref.rollout.enforce_eager (True here, False in the baseline)."
    ]


def test_another_machine_and_a_missing_configuration_are_named(tmp_path):
    own, other = write_run(tmp_path / "own", num_steps=2), write_run(tmp_path / "other", num_steps=2)
    (other / "provenance.json").write_text('{"hardware": {"cpu": "another"}}')
    assert "different machines" in comparison_notes(read_run(own), read_run(other))[0]
    (other / "config.yaml").unlink()
    assert "No config.yaml" in comparison_notes(read_run(own), read_run(other))[0]
