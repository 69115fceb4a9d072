"""Starts the server, and says which command to use in the place of `python`."""

import contextlib
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from efficient_rollout.preload import client

_MODULE = "efficient_rollout.preload.server"
_BACKLOG = 128


@contextlib.contextmanager
def preloaded_python(modules: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a command that runs a script as `python` does, in a process that has imported these modules already.

    The imports go on beside the caller; who asks for a process before they are done waits for them.

    Args:
        modules: Imported in this order. They must start no thread of Python's; one that is missing is left out.
        environment: The variables that the modules see when they are imported.

    Yields:
        The command, quoted for a shell. It starts a plain Python where this server ended, or could not stand for one.
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
