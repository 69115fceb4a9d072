"""A job's configuration, and the Ray cluster it runs in."""

import pytest

pytest.importorskip("verl")

from efficient_rollout.verl_plugin.compose import compose_config

ADDRESS = "ray_kwargs.ray_init.address"


def test_on_a_cpu_a_job_starts_a_cluster_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray_init = compose_config(["size=nano"]).ray_kwargs.ray_init
    assert ray_init.address == "local"
    assert ray_init.num_cpus == 16


def test_a_submitted_job_runs_in_the_cluster_it_was_submitted_to(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    ray_init = compose_config(["size=nano"]).ray_kwargs.ray_init
    # Ray refuses all of these where it joins a cluster.
    assert not {"address", "num_cpus", "num_gpus", "_system_config"} & ray_init.keys()
    assert "joining the Ray cluster at 10.0.0.1:6379" in caplog.text


@pytest.mark.parametrize("address", ["local", "10.0.0.2:6379"])
def test_an_address_of_the_users_own_stands(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert compose_config(["size=nano", f"{ADDRESS}={address}"]).ray_kwargs.ray_init.address == address


def test_a_cluster_of_its_own_by_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    ray_init = compose_config(["size=nano"]).ray_kwargs.ray_init
    assert ray_init.address == "local"
    assert ray_init.num_cpus == 16
