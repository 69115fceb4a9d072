"""What an interrupted job leaves behind: nothing."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from job_support import LOG_FILE, is_alive

from efficient_rollout import cleanup
from efficient_rollout.cleanup import descendants


def mapped_segments(pids: list[int]) -> set[Path]:
    """Shared memory that these processes have mapped; other tests have their own."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = (Path("/proc") / str(pid) / "maps").read_text().splitlines()
            found |= {Path(line.split(maxsplit=5)[5]) for line in lines if str(cleanup.SHARED_MEMORY) in line}
    return found


def assert_interrupted(process: subprocess.Popen, directory: Path, number: signal.Signals, exit_code: int) -> None:
    """Send the signal to a running job: it ends so, and no process, shared memory or socket of it is left."""
    try:
        started = descendants(process.pid)
        assert len(started) > 3
        segments, sockets = mapped_segments(started), set(Path("/tmp").glob("rl-colocate-zmq-*"))
        assert segments
        process.send_signal(number)
        assert process.wait(60) == exit_code
    finally:
        end(process)
    assert [pid for pid in started if is_alive(pid)] == []
    assert [path for path in segments if path.exists()] == []
    assert set(Path("/tmp").glob("rl-colocate-zmq-*")) <= sockets
    log = (directory / LOG_FILE).read_text(errors="replace")
    assert log.rstrip().endswith("every process of the run has ended")


def end(process: subprocess.Popen) -> None:
    """End a job that a failing test would leave behind."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
