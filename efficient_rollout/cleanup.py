"""Nothing left behind: every process this one started, however deep, and their shared memory."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import psutil

from efficient_rollout.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_TERMINATED, EfficientRolloutError

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
_PREFIXES = ("verl_weights_", "psm_", "sem.mp-", "torch_")
_PR_SET_CHILD_SUBREAPER = 36
_GRACE_SECONDS = 5.0


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. A kind of KeyboardInterrupt: Ray's waits end on no other, and raise one of their own."""


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[Callable[[], None]]:
    """Around a job: on the way out, whatever the way, end its processes and remove its shared memory.

    Orphans of the job are adopted by this process, so that descent alone, and no name, decides what is ended.

    Yields:
        A function that takes SIGTERM back from a library that has installed a handler of its own.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ours_before = set(descendants())
    segments_before = set(_segments())

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
            end_processes(lambda: [pid for pid in descendants() if pid not in ours_before])
            remove_segments(set(_segments()) - segments_before)
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
    """Ids of all living processes below `root`, this process by default."""
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


def _segments() -> list[Path]:
    if not SHARED_MEMORY.is_dir():
        return []
    return [path for path in SHARED_MEMORY.iterdir() if path.name.startswith(_PREFIXES)]


def remove_segments(candidates: set[Path]) -> None:
    """Remove those that no living process has mapped or open: other jobs' segments stay."""
    in_use = _used_inodes() if candidates else set()
    for path in candidates:
        with contextlib.suppress(OSError):
            if path.stat().st_ino not in in_use:
                path.unlink()


def _used_inodes() -> set[int]:
    # By inode, which psutil does not tell, not by name: a POSIX semaphore is mapped under the temporary name it was
    # made with.
    used: set[int] = set()
    for process in (Path("/proc") / str(pid) for pid in psutil.pids()):
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
