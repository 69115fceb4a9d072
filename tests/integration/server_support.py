"""vLLM's own server in processes of its own, and a client of it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job_support import take_ctrl_c

from efficient_rollout.cleanup import descendants

START_SECONDS = 300
MODEL, API_KEY = "nano", "open-sesame-please"
OPTIONS = (
    "--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "16",
    "--kv-cache-memory-bytes", str(256 << 20), "--served-model-name", MODEL, "--api-key", API_KEY,
)  # fmt: skip


@dataclass(frozen=True)
class Server:
    """One that answers: the command's process, the root of its address, and the log of all its processes."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def client(self) -> Any:
        """A client of OpenAI's own package."""
        from openai import OpenAI

        return OpenAI(base_url=f"{self.address}/v1", api_key=API_KEY, max_retries=0)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def serving(command: list[str], log: Path) -> Iterator[Server]:
    """Start a server with `OPTIONS` on a free port of this machine, and end it.

    Args:
        command: Arguments of Python that vLLM's options may follow.
        log: File to write.
    """
    port = free_port()
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command, *OPTIONS, "--port", str(port)], stdout=file, stderr=file, env=environment,
            preexec_fn=take_ctrl_c,
        )  # fmt: skip
    started: list[int] = []
    try:
        server = Server(process, f"http://127.0.0.1:{port}", log)
        _wait_until_up(server)
        started = descendants(process.pid)
        yield server
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        for pid in {process.pid, *started}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _wait_until_up(server: Server) -> None:
    for _ in range(START_SECONDS):
        assert server.process.poll() is None, server.log.read_text()[-4000:]
        try:
            urllib.request.urlopen(f"{server.address}/health", timeout=60).close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
        else:
            return
    raise AssertionError(server.log.read_text()[-4000:])


def streamed(client: Any, **given: Any) -> list[tuple[str, Any]]:
    """Text and reason to end of each response, put together from what is streamed."""
    texts: dict[int, str] = {}
    reasons: dict[int, Any] = {}
    for part in client.completions.create(model=MODEL, stream=True, **given):
        for choice in part.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    return [(texts[index], reasons[index]) for index in sorted(texts)]
