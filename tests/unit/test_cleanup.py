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
    orphan, open_one = shared_memory / "verl_weights_a", shared_memory / "verl_weights_b"
    orphan.write_bytes(b"x")
    open_one.write_bytes(b"x")
    with open_one.open("rb"):
        cleanup.remove_segments({orphan, open_one})
    assert not orphan.exists()
    assert open_one.exists()


def test_segments_from_before_and_foreign_names_stay(shared_memory):
    (shared_memory / "verl_weights_old").touch()
    with cleanup.nothing_left_behind():
        (shared_memory / "verl_weights_new").touch()
        (shared_memory / "somebody_else").touch()
    assert sorted(path.name for path in shared_memory.iterdir()) == ["somebody_else", "verl_weights_old"]
