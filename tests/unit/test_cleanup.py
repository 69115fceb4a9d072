import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("verl")

from efficient_rollout import cleanup

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
# A child that ignores SIGTERM, and a grandchild in a session of its own whose parent has gone.
DEEP = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c",
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"],
    start_new_session=True)
time.sleep(600)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses /proc and prctl")
class TestProcesses:
    def test_every_descendant_ends_and_older_children_stay(self, monkeypatch):
        monkeypatch.setattr(cleanup, "_GRACE_SECONDS", 1.0)
        older = subprocess.Popen(SLEEPER)
        # Other tests of this process may have left a resource tracker.
        before = set(cleanup.descendants())
        try:
            with cleanup.nothing_left_behind():
                subprocess.Popen([sys.executable, "-c", DEEP])
                deadline = time.monotonic() + 10
                while len(cleanup.descendants()) < len(before) + 2 and time.monotonic() < deadline:
                    time.sleep(0.05)
                time.sleep(0.3)
                started = set(cleanup.descendants()) - before
                assert len(started) >= 2
            assert older.pid in before
            assert set(cleanup.descendants()) == before
        finally:
            older.kill()
            older.wait()

    def test_sigterm_becomes_an_exception_and_the_old_handler_returns(self):
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(cleanup.Terminated), cleanup.nothing_left_behind():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def shared_memory(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(cleanup, "SHARED_MEMORY", tmp_path)
    return tmp_path


def test_only_unused_segments_are_removed(shared_memory):
    orphan, open_one, renewed = (shared_memory / f"verl_weights_{letter}" for letter in "abc")
    for path in (orphan, open_one, renewed):
        path.write_bytes(b"x")
    inodes = {path: path.stat().st_ino for path in (orphan, open_one, renewed)}
    with open_one.open("rb"):
        cleanup.remove_segments(inodes | {renewed: inodes[renewed] + 1})
    assert not orphan.exists()
    assert open_one.exists()
    assert renewed.exists(), "another segment has its name"


# Makes a segment in the folder when told to, says so, keeps it open or closes it, and waits.
MAKER = """
import sys
from pathlib import Path
path, keeps_open = Path(sys.argv[1]), sys.argv[2] == "open"
sys.stdin.readline()
file = path.open("wb")
if not keeps_open:
    file.close()
print("made", flush=True)
sys.stdin.readline()
"""


class Maker:
    """A process that makes a segment."""

    def __init__(self, path: Path, *, keeps_open: bool) -> None:
        command = [sys.executable, "-c", MAKER, str(path), "open" if keeps_open else "closed"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def make(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "made\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_what_the_job_opened_is_removed_and_nothing_else(shared_memory, monkeypatch):
    monkeypatch.setattr(cleanup, "_LOOK_SECONDS", 0.02)
    (shared_memory / "verl_weights_old").touch()
    # What no process that is seen here has open may be in the hands of another container.
    stranger = Maker(shared_memory / "psm_strangers", keeps_open=False)
    try:
        with cleanup.nothing_left_behind():
            stranger.make()
            with (shared_memory / "somebody_else").open("wb"):
                dead, living = (Maker(shared_memory / f"psm_{name}", keeps_open=True) for name in ("dead", "living"))
                dead.make()
                time.sleep(0.5)
                dead.kill()
                living.make()
        living.process.wait(10)
        assert sorted(path.name for path in shared_memory.iterdir()) == [
            "psm_strangers",
            "somebody_else",
            "verl_weights_old",
        ]
    finally:
        stranger.kill()
