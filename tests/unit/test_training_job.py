"""What stands around a framework's entry point: signals, nodes, and whose error Ray's is."""

import pytest

pytest.importorskip("ray")
pytest.importorskip("vllm")

import ray

from efficient_rollout import training_job
from efficient_rollout.errors import ConfigError
from efficient_rollout.training_job import around_ray, write_run_files


@pytest.fixture
def asked(monkeypatch):
    """What takes place around a start of Ray that starts nothing, in its order."""
    found = []
    monkeypatch.setattr(ray, "init", lambda **_: found.append("stock"))
    monkeypatch.setattr(ray, "shutdown", lambda: found.append("shutdown"))
    monkeypatch.setattr(training_job, "require_on_every_node", lambda: found.append("nodes"))
    return found


def test_signals_are_taken_and_nodes_asked_once_ray_runs(asked):
    stock = ray.init
    with around_ray(lambda: asked.append("signals"), lambda **_: asked.append("ours")):
        ray.init(address="local")
    assert asked == ["ours", "signals", "nodes", "shutdown"]
    assert ray.init is stock
    with around_ray(lambda: asked.append("signals")):
        ray.init()
    assert asked[4:] == ["stock", "signals", "nodes", "shutdown"]


def test_an_error_that_ray_carries_is_told_as_what_it_means(asked):
    carried, ours = ray.exceptions.RayError("remote"), ConfigError("the fault")
    with pytest.raises(ConfigError, match="the fault"), around_ray(list, explain=lambda _: ours):
        raise carried
    with pytest.raises(ray.exceptions.RayError), around_ray(list, explain=lambda _: None):
        raise carried
    assert asked == ["shutdown", "shutdown"]


def test_a_runs_files_hold_no_secret(tmp_path):
    write_run_files(tmp_path / "run", {"trainer": {"api_key": "s3cr3t-Planted", "seed": 3}})
    written = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "provenance.json"} <= written.keys()
    assert "seed: 3" in written["config.yaml"]
    assert not [name for name, text in written.items() if "s3cr3t" in text]
