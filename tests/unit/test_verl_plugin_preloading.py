"""A Python whose imports are done stands for `python`, and which jobs get it, through Ray's own option.

The script cannot tell, except by what is imported already.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("verl")

from omegaconf import OmegaConf

from efficient_rollout.verl_plugin import preloading
from efficient_rollout.verl_plugin.preloading import preloaded_python

MODULES = ("numpy", "there.is.no.such.module", "wave")
SCRIPT = """
import json, os, signal, sys, threading
print(json.dumps({
    "arguments": sys.argv[1:], "beside": sys.path[0], "folder": os.getcwd(), "input": sys.stdin.read(),
    "variable": os.environ.get("VARIABLE"), "main": __name__, "imported": "wave" in sys.modules,
    "number": __import__("numpy").random.rand(), "child_signal": int(signal.getsignal(signal.SIGCHLD)),
}))
print("to stderr", file=sys.stderr)
"""
PLAIN = "starts without the preloaded modules"


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def run(command: str, script: Path, *arguments: str, **variables: str) -> tuple[dict, str]:
    result = subprocess.run(
        [*shlex.split(command), str(script), *arguments],
        input="typed", capture_output=True, text=True, timeout=60, cwd=script.parent, env={**os.environ, **variables},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def test_a_script_finds_what_it_would_in_a_python_of_its_own_and_the_imports_done(script):
    with preloaded_python(MODULES, os.environ) as command:
        first, errors = run(command, script, "a", "--b", VARIABLE="1")
        second, _ = run(command, script, VARIABLE="2")
    assert errors == "to stderr\n"
    number = first.pop("number")
    assert number != second.pop("number")
    same = {"beside": str(script.parent), "folder": str(script.parent), "input": "typed", "main": "__main__"}
    same |= {"imported": True, "child_signal": 0}
    assert first == same | {"arguments": ["a", "--b"], "variable": "1"}
    assert second == same | {"arguments": [], "variable": "2"}


def test_a_process_that_needs_another_start_gets_a_python_of_its_own(script):
    with preloaded_python(MODULES, os.environ) as command:
        found, errors = run(command, script, OMP_NUM_THREADS="3")
    assert not found["imported"]
    assert PLAIN in errors


def test_a_server_that_is_gone_is_done_without_and_said(script, monkeypatch):
    with preloaded_python(MODULES, os.environ) as command:
        pass
    found, errors = run(command, script, "a")
    assert (found["imported"], found["arguments"]) == (False, ["a"])
    assert PLAIN in errors
    monkeypatch.setattr(preloading, "_MODULE", "efficient_rollout.none")
    with preloaded_python(MODULES, os.environ) as command:
        found, errors = run(command, script)
    assert not found["imported"]
    assert PLAIN in errors


def test_modules_that_start_a_thread_are_not_forked(script):
    (script.parent / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    path = {"PYTHONPATH": os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")])}
    with preloaded_python(("threaded", "wave"), os.environ | path) as command:
        found, errors = run(command, script, **path)
    assert not found["imported"]
    assert PLAIN in errors


def test_the_server_ends_with_the_process_that_started_it_however_that_ends():
    code = (
        "import os, psutil; from efficient_rollout.verl_plugin.preloading import preloaded_python\n"
        "with preloaded_python(['wave'], os.environ):\n"
        "    print(psutil.Process().children()[0].pid, flush=True)\n"
        "    os._exit(9)"
    )
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert started.returncode == 9, started.stderr
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(started.stdout)).wait(timeout=30)


def job(device: str = "cpu", address: str = "local", **environment: Any) -> Any:
    environment = {"env_vars": {"SOME": "1"}, "py_executable": None, **environment}
    ray_init = {"address": address, "runtime_env": environment}
    trainable = {"actor": {"strategy": "fsdp2"}}
    return OmegaConf.create(
        {"trainer": {"device": device}, "ray_kwargs": {"ray_init": ray_init}, "actor_rollout_ref": trainable}
    )


@pytest.mark.parametrize(
    "changed", [{"device": "cuda"}, {"address": "auto"}, {"py_executable": "python3"}, {"pip": ["x"]}]
)
def test_a_job_elsewhere_or_with_a_python_of_its_own_keeps_it(changed):
    config = job(**changed)
    with preloading.preloaded(config):
        assert config == job(**changed)


def test_a_job_on_this_machine_s_cpu_gets_the_preloaded_python(monkeypatch):
    monkeypatch.setattr(preloading, "_MODULES", ("wave",))
    config = job()
    with preloading.preloaded(config):
        runtime_env = config.ray_kwargs.ray_init.runtime_env
        assert "preload" in runtime_env.py_executable
        assert runtime_env.env_vars == {"SOME": "1"}
