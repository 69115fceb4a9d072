"""Whole jobs as processes, for the tests."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

TIMEOUT_SECONDS = 600
LOG_FILE = "train.log"


def start_job(arguments: Sequence[str], directory: Path, python: str | Path = sys.executable) -> subprocess.Popen:
    """Start Python with these arguments in a session of its own, its output in `directory/train.log`."""
    directory.mkdir(parents=True, exist_ok=True)
    modules_of_tests = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": modules_of_tests}
    with (directory / LOG_FILE).open("wb") as log:
        return subprocess.Popen(
            [str(python), *arguments], stdout=log, stderr=subprocess.STDOUT, cwd=directory, start_new_session=True,
            preexec_fn=take_ctrl_c, env=environment,
        )  # fmt: skip


def take_ctrl_c() -> None:
    """Have a new process end by SIGINT: a shell's background jobs ignore it, and would hand that down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def log_of(process: subprocess.Popen, directory: Path) -> str:
    """Wait for the end of a job and return what it printed; a failure shows the log's end."""
    try:
        exit_code = process.wait(TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        exit_code = None
    log = (directory / LOG_FILE).read_text(errors="replace")
    assert exit_code == 0, f"exit code {exit_code}; the log ends:\n{log[-6000:]}"
    return log


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Poll until `condition`, or fail saying what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for whoever adopted it to take note."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
