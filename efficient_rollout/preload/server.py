"""Starts, and runs as, `python -m efficient_rollout.preload.server SOCKET MODULES`: imports, forks for whoever asks.

A fork has no thread of the imports': Python's are refused, and those of the numerical libraries start again by
themselves in a fork, as long as nothing was computed before it.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from efficient_rollout.preload import client

_MODULE = "efficient_rollout.preload.server"
_BACKLOG, _MESSAGE_BYTES = 128, 1 << 16
# What an interpreter, or a library while it is loaded, reads once: a process that wants another value needs its own.
_READ_AT_START = ("PYTHONPATH", "PYTHONHASHSEED", "LD_PRELOAD", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")


@contextlib.contextmanager
def preloaded_python(modules: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a command, quoted for a shell, that runs a script as `python` does, with these imports done already.

    They go on beside the caller; who asks for a process before they are done waits for them. Where the server ended, or
    could not stand for a Python, the command starts a plain one.

    Args:
        modules: Imported in this order. They must start no thread of Python's; one that is missing is left out.
        environment: The variables that the modules see when they are imported.
    """
    with tempfile.TemporaryDirectory(prefix="efficient_rollout_") as directory:
        address = Path(directory) / "preload"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
            listener.listen(_BACKLOG)
            server = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(listener.fileno()), *modules],
                env=dict(environment),
                pass_fds=[listener.fileno()],
                # Ctrl-C is for the caller, who ends the server.
                start_new_session=True,
                # The server ends where this process does, however it does: it sees the other end of the pipe closed.
                stdin=subprocess.PIPE,
                # What the imports have to say, they say again in a process that starts without this server.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        try:
            # Isolated and without site-packages: the client is the standard library's, and starts in milliseconds.
            yield shlex.join([sys.executable, "-I", "-S", client.__file__, str(address)])
        finally:
            server.kill()
            server.communicate()


def serve(listener: socket.socket, modules: Sequence[str]) -> None:
    """Import, then fork for every client, until standard input ends; returns in a fork too, when its script has ended.

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
            data, streams, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 3)
            while more := connection.recv(_MESSAGE_BYTES):
                data += more
            request = json.loads(data)
            wanted = request["environment"]
            if all(wanted.get(name) == at_start.get(name) for name in _READ_AT_START) and os.fork() == 0:
                listener.close()
                # As if the imports had found the variables that are asked for, and had set theirs.
                own = {name: value for name, value in by_imports.items() if wanted.get(name) == at_start.get(name)}
                _become(request["folder"], wanted | own, streams)
                connection.sendall(client.YES)
                sys.argv = request["command"]
                sys.path[0] = str(Path(sys.argv[0]).parent)
                runpy.run_path(sys.argv[0], run_name="__main__")
                return
            for stream in streams:
                os.close(stream)


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


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
