"""Ctrl-C and SIGTERM in the middle of training leave no process and no shared memory behind."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("verl")

from job_support import is_alive, wait_until
from verl_support import start

from efficient_rollout import cleanup
from efficient_rollout.cleanup import descendants

pytestmark = pytest.mark.verl


def mapped_segments(pids: list[int]) -> set[Path]:
    """Shared memory that these processes have mapped; other tests have their own."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = (Path("/proc") / str(pid) / "maps").read_text().splitlines()
            found |= {Path(line.split(maxsplit=5)[5]) for line in lines if str(cleanup.SHARED_MEMORY) in line}
    return found


def sockets() -> set[Path]:
    return set(Path("/tmp").glob("rl-colocate-zmq-*"))


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_nothing_is_left_behind(number, exit_code, tmp_path):
    sockets_before = sockets()
    # SIGINT in the middle of training; SIGTERM while the engine is starting.
    in_training = number == signal.SIGINT
    process = start(["trainer.use_v1=false", "trainer.total_training_steps=500", "trainer.test_freq=-1"], tmp_path)
    log, metrics = tmp_path / "train.log", tmp_path / "metrics.jsonl"
    try:
        if in_training:
            wait_until(
                lambda: metrics.exists() and "training/global_step" in metrics.read_text(), seconds=400, what="step 1"
            )
        else:
            wait_until(lambda: "EfficientServer" in log.read_text(errors="replace"), seconds=300, what="the server")
        started = descendants(process.pid)
        assert len(started) > 3
        segments = mapped_segments(started)
        assert segments
        process.send_signal(number)
        assert process.wait(60) == exit_code
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert [pid for pid in started if is_alive(pid)] == []
    assert [path for path in segments if path.exists()] == []
    assert sockets() - sockets_before == set()
    assert log.read_text(errors="replace").rstrip().endswith("every process of the run has ended")
