"""A replica refuses processes that lack the plugin; a handle of its servers brings no vLLM along."""

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("verl")

from ray import cloudpickle

from efficient_rollout.errors import PluginInactiveError
from efficient_rollout.verl_plugin.replica import deferred, require_active
from efficient_rollout.verl_plugin.server import EfficientServer


def test_inactive_processes_are_all_named():
    statuses = {"server": {"active": True}, "engine worker 0": {"active": False}, "trainer worker 1": {}}
    with pytest.raises(PluginInactiveError, match=r"2 of 3 processes .*engine worker 0.*trainer worker 1"):
        require_active(statuses)
    require_active({"server": {"active": True, "efficient_rollout": "1"}})


def test_processes_of_different_versions_are_all_named():
    statuses = {name: {"active": True, "efficient_rollout": version} for name, version in (("a", "1"), ("b", "2"))}
    with pytest.raises(PluginInactiveError, match=r"different versions .*\(a: 1, b: 2\): install the same"):
        require_active(statuses)
    require_active({name: status for name, status in statuses.items() if name == "a"})


CHILD = """
import importlib, json, sys
from ray import cloudpickle
import verl  # as Ray's processes do, for the plugin
*modules, pickled = sys.argv[1:]
for module in modules:
    importlib.import_module(module)
assert cloudpickle.loads(bytes.fromhex(pickled)).generate
print(json.dumps([name for name in sys.modules if name.partition(".")[0] == "vllm"]))
"""


def imported(*modules: str, loads: type) -> list[str]:
    """Names of vLLM's modules that a process has, after it imported these, and got a class as Ray ships it."""
    command = [sys.executable, "-c", CHILD, *modules, cloudpickle.dumps(loads).hex()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def test_a_first_process_a_load_balancer_and_an_agent_loop_import_no_vllm():
    first = ("checks", "main", "preloading")
    modules = (
        "verl.trainer.main_ppo",
        *(f"efficient_rollout.verl_plugin.{name}" for name in first),
        "verl.workers.rollout.router",
        "verl.experimental.agent_loop.agent_loop",
    )
    assert imported(*modules, loads=deferred(EfficientServer)) == []


class Actual:
    """Stands for a server."""

    def __init__(self, number: int, *, factor: int = 1) -> None:
        self._number = number * factor

    def doubled(self, times: int = 1) -> int:
        return self._number * 2 * times

    async def waited(self, *, more: int) -> int:
        return self._number + more

    def _hidden(self) -> None: ...


def test_a_deferred_class_answers_as_the_one_it_makes():
    made: Any = deferred(Actual)(3, factor=2)
    assert made.doubled(times=2) == 24
    assert asyncio.run(made.waited(more=1)) == 7
    assert not hasattr(made, "_hidden")
    assert type(made).__name__ == "Actual"
