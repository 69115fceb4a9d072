"""veRL's vLLM replica, launching our server and refusing to train with a process that lacks the plugin."""

import asyncio
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import ray
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMReplica

from efficient_rollout.engine.checks import check_build
from efficient_rollout.errors import PluginInactiveError
from efficient_rollout.verl_plugin import HOW_TO_LOAD, ROLLOUT_NAME
from efficient_rollout.verl_plugin.ledger import plugin_status
from efficient_rollout.verl_plugin.server import EfficientServer


class EfficientReplica(vLLMReplica):
    """Is one engine, on one or several nodes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_build()  # of Ray's head, perhaps; the server checks the device
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(deferred(EfficientServer))

    def _get_server_name_prefix(self) -> str:
        """Return the rollout's name: veRL's server adapter looks the actor up under it."""
        return f"{ROLLOUT_NAME}_"

    async def launch_servers(self) -> None:
        """Launch, then ask every process of the replica whether it carries the plugin.

        Raises:
            PluginInactiveError: One does not.
        """
        await super().launch_servers()
        asked = [worker.__ray_call__.remote(lambda _worker: plugin_status()) for worker in self.workers]
        trainers = await asyncio.gather(*asked)
        servers = await asyncio.gather(*[server.plugin_statuses.remote() for server in self.servers])
        replica = f"replica {self.replica_rank}"
        statuses = {f"{replica}, trainer worker {rank}": status for rank, status in enumerate(trainers)}
        for node, reported in enumerate(servers):
            statuses |= {f"{replica}, {process} on node {node}": status for process, status in reported.items()}
        require_active(statuses)


def require_active(statuses: dict[str, dict[str, Any]]) -> None:
    """Raise unless every status says "active", and all are of one version of this package.

    Raises:
        PluginInactiveError: Names each process that lacks the plugin, with what it reported, or each one's version.
    """
    inactive = {process: status for process, status in statuses.items() if not status.get("active")}
    if inactive:
        listed = "; ".join(f"{process}: {status}" for process, status in inactive.items())
        raise PluginInactiveError(
            f"efficient_rollout is not active in {len(inactive)} of {len(statuses)} processes ({listed}): {HOW_TO_LOAD}"
        )
    versions = {process: status["efficient_rollout"] for process, status in statuses.items()}
    if len(set(versions.values())) > 1:
        listed = ", ".join(f"{process}: {version}" for process, version in versions.items())
        raise PluginInactiveError(
            f"processes of this job have different versions of efficient-rollout ({listed}): "
            "install the same one on every node"
        )


def deferred(actual: type) -> type:
    """Return a class with the public methods of another one, which it imports and makes when it is made itself.

    Ray loads an actor's class wherever a handle of the actor arrives. veRL hands its servers' to the load balancer and
    the agent loops, and each would import vLLM's server for the sake of the methods' names. This one is shipped whole,
    since no module has it by name. Asynchronous generators are not among the methods.
    """
    module, qualname = actual.__module__, actual.__qualname__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        self.actual = getattr(importlib.import_module(module), qualname)(*args, **kwargs)

    methods = {
        name: _forwarded(name, is_async=inspect.iscoroutinefunction(function))
        for name, function in inspect.getmembers(actual, inspect.isfunction)
        if not name.startswith("_")
    }
    return type(actual.__name__, (), {"__init__": __init__, "__module__": __name__, **methods})


def _forwarded(name: str, *, is_async: bool) -> Callable[..., Any]:
    async def call_and_wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await getattr(self.actual, name)(*args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.actual, name)(*args, **kwargs)

    method = call_and_wait if is_async else call
    method.__name__ = name
    return method
