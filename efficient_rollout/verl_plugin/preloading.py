"""What the processes of a veRL job import, imported once: on one machine's CPU, where importing is most of a start.

One process imports (`python -m` this module), and every other of the job is a fork of it. The command that stands for
`python` is `preload_client.py`, and asks for a fork. Linux alone, and the standard library alone until then.

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
from typing import Any

from efficient_rollout.verl_plugin import preload_client

_MODULE = "efficient_rollout.verl_plugin.preloading"
_BACKLOG, _MESSAGE_BYTES = 128, 1 << 16
# What an interpreter, or a library while it is loaded, reads once: a process that wants another value needs its own.
_READ_AT_START = ("PYTHONPATH", "PYTHONHASHSEED", "LD_PRELOAD", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
# Nearly all of what `import verl`, its trainers and its vLLM server import of others. Ray is not among them: importing
# it reads variables that its processes are told apart by. Nor is anything that imports it.
_MODULES = (
    "torch",
    "tensordict",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "peft",
    "torchdata.stateful_dataloader",
    "datasets",
    "vllm.engine.arg_utils",
    "vllm.lora.worker_manager",
)
_PYTHON, _VARIABLES = "py_executable", "env_vars"


@contextlib.contextmanager
def preloaded(config: Any) -> Iterator[None]:
    """Let the Ray cluster that the job is about to start make its processes of one that has imported already.

    Through Ray's own option for the Python of its processes; a runtime environment of the user's own is left as it is.
    Only for a job on CPUs that starts a cluster of its own: an accelerator's libraries must not be shared by forks, and
    another node has no such process.
    """
    ray_init = config.ray_kwargs.ray_init
    environment = ray_init.get("runtime_env") or {}
    # Any other option may mean other packages, or another Python.
    has_its_own = any(value is not None for name, value in environment.items() if name != _VARIABLES)
    if config.trainer.device != "cpu" or ray_init.get("address") != "local" or has_its_own:
        yield
        return
    from omegaconf import open_dict
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    variables = {**get_ppo_ray_runtime_env(config)[_VARIABLES], **environment.get(_VARIABLES, {})}
    with preloaded_python(_MODULES, {**os.environ, **variables}) as command:
        with open_dict(ray_init):
            ray_init.runtime_env = {**environment, _PYTHON: command}
        yield


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
            yield shlex.join([sys.executable, "-I", "-S", preload_client.__file__, str(address)])
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
                connection.sendall(preload_client.YES)
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
