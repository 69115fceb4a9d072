"""Jobs of one command: which they are, where they write, and what becomes of one that fails."""

from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("hydra")
if find_spec("verl") is None:
    pytest.skip("veRL's own configuration is the ground", allow_module_level=True)

from efficient_rollout.errors import ConfigError
from efficient_rollout.verl_plugin import multirun
from efficient_rollout.verl_plugin.compose import job_hydra
from efficient_rollout.verl_plugin.multirun import Job, jobs_of, run_jobs

SETTINGS = "actor_rollout_ref.rollout.custom.efficient_rollout"


def test_every_combination_is_a_job():
    overrides = ["recipe=grpo_quickstart", "efficient_rollout=off,on", "~trainer.logger", "+trainer.x='a b'"]
    jobs = jobs_of(overrides, job_hydra())
    shared = ("~trainer.logger=null", "+trainer.x='a b'")  # hydra's own way to write them
    assert [job.overrides for job in jobs] == [
        ("recipe=grpo_quickstart", f"efficient_rollout={arm}", *shared) for arm in ("off", "on")
    ]
    assert [job.directory.name for job in jobs] == ["grpo_quickstart_off", "grpo_quickstart_on"], "the recipe's own"


def test_jobs_with_one_directory_get_one_each(tmp_path):
    overrides = ["size=nano,small", "efficient_rollout=off,on", f"trainer.default_local_dir={tmp_path}/it's"]
    overrides[-1] = f'trainer.default_local_dir="{tmp_path}/it\'s"'
    jobs = jobs_of(overrides, job_hydra())
    assert len({job.directory for job in jobs}) == 4
    assert jobs[0].directory == tmp_path / "it's" / "size=nano,efficient_rollout=off"
    # The job itself reads the same from its overrides.
    (again,) = jobs_of(jobs[0].overrides, job_hydra())
    assert again.directory == jobs[0].directory


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["efficient_rollout=off,onn"], "did you mean efficient_rollout=on"),
        ([f"+{SETTINGS}.controller.max_draft_tokens=4,99"], "max_draft_tokens.*got 99"),
        (["trainer.nnodes=1,1"], "values given twice"),
        (["hydra/sweeper=optuna"], "without hydra's sweepers"),
        (["hydra.sweep.dir=x"], "without hydra's sweepers"),
    ],
)
def test_a_fault_in_any_of_them_is_told_before_the_first_runs(overrides, words):
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        jobs_of(overrides, job_hydra())


def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of this package's command: a process that ends as its last override says, and says that it ran."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nfor last; do :; done\necho "$last" >>{tmp_path}/ran\nexit "${{last#code=}}"\n')
    script.chmod(0o755)
    monkeypatch.setattr(multirun.sys, "executable", str(script))


@pytest.mark.parametrize(("codes", "first", "ran"), [((0, 0), 0, 2), ((0, 3, 0, 2), 3, 4), ((0, 130, 0), 130, 2)])
def test_one_that_fails_is_told_and_an_interrupted_one_ends_all(codes, first, ran, tmp_path, monkeypatch, capfd):
    jobs = [Job((f"code={code}",), f"job{number}", tmp_path / str(number)) for number, code in enumerate(codes)]
    with monkeypatch.context() as patched:
        stub(tmp_path, patched)
        assert run_jobs(jobs) == first
    assert (tmp_path / "ran").read_text().split() == [f"code={code}" for code in codes[:ran]]
    rows = [line.split() for line in capfd.readouterr().out.splitlines()[1:]]
    told = {0: ["done"]}
    ended = [told.get(code, ["failed,", "exit", "code", str(code)]) for code in codes[:ran]]
    assert [row[1:-1] for row in rows] == [*ended, *[["not", "run"]] * (len(codes) - ran)]
