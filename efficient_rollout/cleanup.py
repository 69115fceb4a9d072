"""Nothing left behind: every process this one started, however deep, and their shared memory."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

import psutil

from efficient_rollout.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_TERMINATED, EfficientRolloutError

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
_PREFIXES = ("verl_weights_", "psm_", "sem.mp-", "torch_")
_PR_SET_CHILD_SUBREAPER = 36
_GRACE_SECONDS = 5.0
_LOOK_SECONDS = 1.0


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. It is a KeyboardInterrupt: Ray's waits end on no other, and raise one of their own."""


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[Callable[[], None]]:
    """Stand around a job: on the way out, whatever the way, end its processes and remove its shared memory.

    Orphans of the job are adopted by this process, so that descent alone, and no name, decides what is ended. Of shared
    memory, what one of them was seen to have open is removed: a container may share `/dev/shm` with others, whose
    processes it does not see.

    Yields:
        A function that takes SIGTERM back from a library that has installed a handler of its own.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ours_before = set(descendants())

    def list_processes() -> list[int]:
        return [pid for pid in descendants() if pid not in ours_before]

    segments = _OwnSegments(lambda: [os.getpid(), *list_processes()])
    terminated = False

    def terminate(_number: int, _frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        raise Terminated

    def take_signals() -> None:
        signal.signal(signal.SIGTERM, terminate)

    previous = signal.getsignal(signal.SIGTERM)
    take_signals()
    try:
        yield take_signals
    except KeyboardInterrupt as interruption:
        if terminated and not isinstance(interruption, Terminated):
            raise Terminated from interruption
        raise
    finally:
        # A second Ctrl-C must not stop the clean-up half-way; each of its waits is bounded.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            opened = segments.take()
            end_processes(list_processes)
            remove_segments(opened)
        finally:
            signal.signal(signal.SIGINT, interrupt)
            signal.signal(signal.SIGTERM, previous)


def exit_code_of(command: str, job: Callable[[], int | None]) -> int:
    """Run a command that starts a job; however it ends, say so in one message on stderr.

    Args:
        command: Its name, for the message.
        job: What it does; starts processes inside `nothing_left_behind`. It may return an exit code.

    Returns:
        The job's exit code, 0 without one, or the process's: 2 for bad input, 130 and 143 after SIGINT and SIGTERM.
    """

    def say(message: str, exit_code: int) -> int:
        sys.stderr.write(f"efficient-rollout {command}: {message}\n")
        return exit_code

    try:
        return job() or 0
    except Terminated:
        return say("terminated; every process of the run has ended", EXIT_TERMINATED)
    except KeyboardInterrupt:
        return say("interrupted; every process of the run has ended", EXIT_INTERRUPTED)
    except EfficientRolloutError as error:
        # Ray adds a remote traceback to the text of an error it carried; the first argument is what was raised.
        return say(f"error: {error.args[0] if error.args else error}", EXIT_BAD_INPUT)


def descendants(root: int | None = None) -> list[int]:
    """Return the ids of all living processes below `root`, this process by default."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(root).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
    return found


def end_processes(list_processes: Callable[[], list[int]]) -> None:
    """Ask, then force; new ones that appear meanwhile are caught too."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _GRACE_SECONDS
        asked: set[int] = set()
        while remaining := list_processes():
            for pid in set(remaining) - asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                asked.add(pid)
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
            _reap()
        else:
            return
    left = list_processes()
    if left:
        logger.warning("processes %s did not end", left)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _segments() -> dict[Path, int]:
    """Return those that there are by now, with their inodes."""
    found: dict[Path, int] = {}
    with contextlib.suppress(FileNotFoundError):
        for path in SHARED_MEMORY.iterdir():
            with contextlib.suppress(OSError):
                if path.name.startswith(_PREFIXES):
                    found[path] = path.stat().st_ino
    return found


class _OwnSegments:
    """Looks for new shared memory that a job's processes have open, until it is taken.

    A process that ends by itself may leave a segment behind, so they are asked while they live: soon after a segment
    appears, and ever more rarely while it turns out to be nobody's.

    Args:
        list_processes: Ids of the job's.
    """

    def __init__(self, list_processes: Callable[[], list[int]]) -> None:
        self._list_processes = list_processes
        self._before = _segments()
        self._own: dict[Path, int] = {}
        self._num_looks: dict[Path, int] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="shared memory", daemon=True)
        self._thread.start()

    def take(self) -> dict[Path, int]:
        """Look once more, at every segment, and for the last time."""
        self._is_over.set()
        self._thread.join()
        self._look(lambda _: True)
        return self._own

    def _look_on(self) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            self._look(lambda num_looks: num_looks.bit_count() == 1)

    def _look(self, is_due: Callable[[int], bool]) -> None:
        unknown = dict(_segments().items() - self._before.items() - self._own.items())
        self._num_looks = {path: self._num_looks.get(path, 0) + 1 for path in unknown}
        if any(is_due(num_looks) for num_looks in self._num_looks.values()):
            opened = _used_inodes(self._list_processes())
            self._own |= {path: inode for path, inode in unknown.items() if inode in opened}


def remove_segments(candidates: dict[Path, int]) -> None:
    """Remove those that no living process has mapped or open.

    Args:
        candidates: With their inodes; one that has another by now is somebody else's.
    """
    in_use = _used_inodes(psutil.pids()) if candidates else set()
    for path, inode in candidates.items():
        with contextlib.suppress(OSError):
            if path.stat().st_ino == inode and inode not in in_use:
                path.unlink()


def _used_inodes(processes: Iterable[int]) -> set[int]:
    # By inode, which psutil does not tell, not by name: a POSIX semaphore is mapped under the temporary name it was
    # made with.
    used: set[int] = set()
    for process in (Path("/proc") / str(pid) for pid in processes):
        with contextlib.suppress(OSError):
            for line in (process / "maps").read_text().splitlines():
                if str(SHARED_MEMORY) in line:
                    used.add(int(line.split(maxsplit=5)[4]))
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(SHARED_MEMORY) in str(descriptor.readlink()):
                        used.add(descriptor.stat().st_ino)
    return used
