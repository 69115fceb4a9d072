"""Runs as `python client.py ADDRESS SCRIPT ARGUMENTS`: asks the server for a process, and lives as long as it does."""

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

YES = b"y"


def run(address: str, command: Sequence[str]) -> None:
    """Make a fork of the server at a socket's address run a script, with this process's variables, folder and streams.

    Where the server is gone or says no, this process becomes a plain Python instead, and says so on stderr.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            request = {"command": command, "environment": dict(os.environ), "folder": str(Path.cwd())}
            data = json.dumps(request).encode()
            sent = socket.send_fds(connection, [data], [0, 1, 2])
            connection.sendall(data[sent:])
            connection.shutdown(socket.SHUT_WR)
            is_taken = connection.recv(1) == YES
            if is_taken:
                connection.recv(1)  # nothing: it ends when the fork does
    except OSError:
        is_taken = False
    if not is_taken:
        sys.stderr.write("efficient-rollout: a process starts without the preloaded modules, which takes longer\n")
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
