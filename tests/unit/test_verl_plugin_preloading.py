"""Which jobs get the preloaded Python, through Ray's own option."""

from typing import Any

import pytest

pytest.importorskip("verl")

from omegaconf import OmegaConf

from efficient_rollout.verl_plugin import preloading


def job(device: str = "cpu", address: str = "local", **environment: Any) -> Any:
    environment = {"env_vars": {"SOME": "1"}, "py_executable": None, **environment}
    ray_init = {"address": address, "runtime_env": environment}
    trainable = {"actor": {"strategy": "fsdp2"}}
    return OmegaConf.create(
        {"trainer": {"device": device}, "ray_kwargs": {"ray_init": ray_init}, "actor_rollout_ref": trainable}
    )


@pytest.mark.parametrize(
    "changed", [{"device": "cuda"}, {"address": "auto"}, {"py_executable": "python3"}, {"pip": ["x"]}]
)
def test_a_job_elsewhere_or_with_a_python_of_its_own_keeps_it(changed: dict[str, Any]) -> None:
    config = job(**changed)
    with preloading.preloaded(config):
        assert config == job(**changed)


def test_a_job_on_this_machine_s_cpu_gets_the_preloaded_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preloading, "_MODULES", ("wave",))
    config = job()
    with preloading.preloaded(config):
        runtime_env = config.ray_kwargs.ray_init.runtime_env
        assert "preload" in runtime_env.py_executable
        assert runtime_env.env_vars == {"SOME": "1"}
