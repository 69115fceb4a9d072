"""A cluster that is gone is said before Ray waits for it."""

import socket

import pytest

pytest.importorskip("ray")

import ray._private.utils

from efficient_rollout.errors import ClusterError
from efficient_rollout.nodes import require_running_cluster


@pytest.fixture
def gone() -> str:
    """An address where nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def record(monkeypatch, tmp_path):
    """Ray's record of the last `ray start`, elsewhere than in the folder that other jobs look into."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(
        "efficient_rollout.nodes.read_ray_address", lambda: ray._private.utils.read_ray_address(tmp_path)
    )
    return tmp_path / "ray_current_cluster"


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_record_of_a_cluster_that_is_gone(record, gone, address):
    record.write_text(gone)
    with pytest.raises(
        ClusterError, match=rf"{gone} does not answer .* record of the last `ray start`.*RAY_ADDRESS=local"
    ):
        require_running_cluster(address)


def test_an_address_in_the_variable_comes_first(record, gone, monkeypatch):
    record.write_text("127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", gone)
    with pytest.raises(ClusterError, match=f"{gone} does not answer .*; RAY_ADDRESS names it"):
        require_running_cluster(None)
    with pytest.raises(ClusterError, match=r"127.0.0.1:2 does not answer .*; ray_init.address names it"):
        require_running_cluster("127.0.0.1:2")


@pytest.mark.parametrize("address", ["local", "ray://127.0.0.1:1"])
def test_what_joins_none_is_not_asked(record, address, monkeypatch):
    record.write_text("127.0.0.1:1")
    require_running_cluster(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    require_running_cluster(None)


def test_one_that_answers(record):
    require_running_cluster(None)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        record.write_text(f"127.0.0.1:{listener.getsockname()[1]}")
        require_running_cluster(None)
