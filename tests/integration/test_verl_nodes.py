"""A job on two Ray nodes, which differs from a job on one in its resources alone; and a node without this package."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("verl")

from job_support import log_of, wait_until
from verl_support import start
from wheel_support import make_environment

from efficient_rollout.metrics import names

pytestmark = [pytest.mark.verl, pytest.mark.slow]

# The slots of a node: one for an engine, and what veRL wants beside it.
SLOTS = ("--num-gpus=1", "--num-cpus=16")
# Ray would start a process for each of those at once.
HEAD = ("--head", "--include-dashboard=false", '--system-config={"prestart_worker_first_driver": false}')
JOB = ("recipe=grpo_qwen3_8b_gsm8k_math", "smoke=nano", "efficient_rollout=always")

StartNode = Callable[..., None]


@pytest.fixture
def start_node(tmp_path, monkeypatch) -> Iterator[StartNode]:
    """`ray start`, the first time of the head, whose address jobs find in Ray's own variable."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    # Ray keeps the cluster's address there, for every later job; and sockets, whose paths must be short.
    kept = Path(tempfile.mkdtemp(prefix="ray_", dir="/tmp"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    started: list[subprocess.Popen] = []

    def start_one(python: str | Path = sys.executable) -> None:
        role = (*HEAD, f"--port={port}", f"--temp-dir={kept}") if not started else (f"--address=127.0.0.1:{port}",)
        log = tmp_path / f"node_{len(started)}.log"
        command = [str(python), "-m", "ray.scripts.scripts", "start", "--block", *role, *SLOTS]
        with log.open("wb") as output:
            started.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path))
        wait_until(lambda: "Ray runtime started" in log.read_text(), seconds=120, what=f"a node: {log}")

    start_one()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    yield start_one
    for process in reversed(started):
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    shutil.rmtree(kept)


def start_on_two_nodes(directory: Path) -> subprocess.Popen:
    return start([*JOB, "trainer.nnodes=2"], directory)


def test_two_nodes_train_together(start_node, tmp_path):
    start_node()
    directory = tmp_path / "job"
    assert "joining the Ray cluster" in log_of(start_on_two_nodes(directory), directory)
    (line,) = (directory / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(line)
    assert metrics["training/rollout_probs_diff_mean"] < 1e-4, "the engines sample from the trainer's policy"
    # A node has the slots of one.
    assert metrics[names.NUM_ENGINES] == 2
    assert metrics[names.SPECULATIVE_TICK_SHARE] > 0.5


def test_a_node_without_the_package_is_named(start_node, tmp_path):
    without = make_environment(tmp_path / "environment", wheel=None)
    start_node(without / "python")
    directory = tmp_path / "job"
    assert start_on_two_nodes(directory).wait(300) == 2
    message = (directory / "train.log").read_text()
    assert "must be installed on every node of the Ray cluster" in message
    assert message.count("has none") == 1, "this node has it"
    assert "Traceback" not in message


def test_the_environment_without_is_one(tmp_path):
    # Else the test above would prove nothing.
    python = make_environment(tmp_path, wheel=None) / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), "-c", "import ray, verl; import efficient_rollout"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert "No module named 'efficient_rollout'" in result.stderr
