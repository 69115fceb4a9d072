"""Runs as `python -m efficient_rollout.preload.server SOCKET MODULES`: imports, then forks for whoever asks.

The fork has no thread of the imports': Python's are refused, and those of the numerical libraries start again by
themselves in a fork, as long as nothing was computed before it.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficient_rollout.preload.client import YES

_MESSAGE_BYTES = 1 << 16
# What an interpreter, or a library while it is loaded, reads once: a process that wants another value needs its own.
_READ_AT_START = ("PYTHONPATH", "PYTHONHASHSEED", "LD_PRELOAD", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")


def serve(listener: socket.socket, modules: Sequence[str]) -> None:
    """Import, then fork for every client, until standard input ends; returns in a fork too, when its script has ended.

    Args:
        listener: Bound and listening.
        modules: Those that are missing are left out.

    Raises:
        RuntimeError: A module started a thread of Python's, which a fork would lack.
    """
    at_start = dict(os.environ)
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if threading.active_count() > 1:
        raise RuntimeError(f"threads run after the imports: {threading.enumerate()}")
    by_imports = {name: value for name, value in os.environ.items() if at_start.get(name) != value}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    # What was imported is never garbage, and stays shared with the forks.
    gc.collect()
    gc.freeze()
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        with connection:
            request, streams = _receive(connection)
            wanted = request["environment"]
            if all(wanted.get(name) == at_start.get(name) for name in _READ_AT_START) and os.fork() == 0:
                listener.close()
                # As if the imports had found the variables that are asked for, and had set theirs.
                own = {name: value for name, value in by_imports.items() if wanted.get(name) == at_start.get(name)}
                _become(request["folder"], wanted | own, streams)
                connection.sendall(YES)
                _run_script(request["command"])
                return
            for stream in streams:
                os.close(stream)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, streams, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 3)
    while more := connection.recv(_MESSAGE_BYTES):
        data += more
    return json.loads(data), streams


def _become(folder: str, environment: dict[str, str], streams: Sequence[int]) -> None:
    """Take the client's place, as far as a process can."""
    os.setsid()  # a signal to the client's group of processes must not reach the other forks
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # else every fork draws the same numbers; Python's own generator sees to itself


def _run_script(command: Sequence[str]) -> None:
    sys.argv = list(command)
    sys.path[0] = str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
