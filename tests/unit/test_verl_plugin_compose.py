"""A job's configuration, and the Ray cluster it runs in."""

from importlib.util import find_spec

import pytest

pytest.importorskip("hydra")
if find_spec("verl") is None:
    pytest.skip("veRL's own configuration is the ground", allow_module_level=True)

from efficient_rollout.errors import ConfigError
from efficient_rollout.verl_plugin.compose import compose_config, job_hydra

ADDRESS = "ray_kwargs.ray_init.address"


def test_on_a_cpu_a_job_starts_a_cluster_of_its_own(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray_init = compose_config(["size=nano"]).ray_kwargs.ray_init
    assert ray_init.address == "local"
    assert ray_init.num_cpus == 16


def test_a_submitted_job_runs_in_the_cluster_it_was_submitted_to(monkeypatch, caplog):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    ray_init = compose_config(["size=nano"]).ray_kwargs.ray_init
    # Ray refuses all of these where it joins a cluster.
    assert not {"address", "num_cpus", "num_gpus", "_system_config"} & ray_init.keys()
    assert "joining the Ray cluster at 10.0.0.1:6379" in caplog.text


@pytest.mark.parametrize("address", ["local", "10.0.0.2:6379"])
def test_an_address_of_the_users_own_stands(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert compose_config(["size=nano", f"{ADDRESS}={address}"]).ray_kwargs.ray_init.address == address


def test_a_cluster_of_its_own_by_the_variable(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    ray_init = compose_config(["size=nano"]).ray_kwargs.ray_init
    assert ray_init.address == "local"
    assert ray_init.num_cpus == 16


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("recipe=grppo", ["no recipe=grppo; did you mean recipe=grpo?", "dapo_qwen2_5_32b, grpo, ", "grpo_quickstart"]),
        ("recipe=qqqq", ["no recipe=qqqq. recipe= takes dapo_qwen2_5_32b, "]),
        ("recip=grpo", ["no recip; did you mean recipe?"]),
        ("trainer.total_trainning_steps=5", ["total_trainning_steps; did you mean trainer.total_training_steps?", "+"]),
        ("trainer.qqqq=5", ["no trainer.qqqq. "]),
        ("efficient_rollout=off,on", ["Ambiguous value", "--multirun"]),
        ("trainer.nnodes=${no_such_resolver:1}", ["no_such_resolver"]),
        ("trainer.nnodes=[", ["no viable alternative"]),
    ],
)
def test_a_misspelt_override_is_one_line_with_what_there_is(override, words):
    with pytest.raises(ConfigError) as raised:
        compose_config([override])
    told = str(raised.value)
    assert [word for word in words if word not in told] == [], told
    assert "\n" not in told
    assert "site-packages" not in told


def test_groups_of_the_users_own_add_to_these(tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [grpo, _self_]\ntrainer: {total_training_steps: 7}\n"
    )
    config = compose_config(["recipe=mine"], job_hydra(str(tmp_path)))
    assert (config.trainer.total_training_steps, config.algorithm.adv_estimator) == (7, "grpo")
    with pytest.raises(ConfigError, match="is not a directory"):
        job_hydra(str(tmp_path / "nothing"))
