"""veRL's vLLM replica, launching our server and refusing to train with a process that lacks the plugin."""

import asyncio
from typing import Any

import ray
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMReplica

from efficient_rollout.engine.checks import check_build
from efficient_rollout.errors import PluginInactiveError
from efficient_rollout.verl_plugin import ROLLOUT_NAME
from efficient_rollout.verl_plugin.deferred import deferred
from efficient_rollout.verl_plugin.server import EfficientServer
from efficient_rollout.verl_plugin.status import plugin_status


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
        statuses = {f"trainer worker {rank}": status for rank, status in enumerate(trainers)}
        for node, reported in enumerate(servers):
            statuses |= {f"{process} on node {node}": status for process, status in reported.items()}
        require_active({f"replica {self.replica_rank}, {process}": status for process, status in statuses.items()})


def require_active(statuses: dict[str, dict[str, Any]]) -> None:
    """Raise unless every status says "active", and all are of one version of this package.

    Raises:
        PluginInactiveError: Names each process that lacks the plugin, with what it reported, or each one's version.
    """
    inactive = {process: status for process, status in statuses.items() if not status.get("active")}
    if inactive:
        listed = "; ".join(f"{process}: {status}" for process, status in inactive.items())
        raise PluginInactiveError(
            f"efficient_rollout is not active in {len(inactive)} of {len(statuses)} processes ({listed}). Install "
            "the same version on every node, and leave VERL_USE_EXTERNAL_PLUGINS and VLLM_PLUGINS unset or let "
            "them include 'efficient_rollout'."
        )
    versions = {process: status["efficient_rollout"] for process, status in statuses.items()}
    if len(set(versions.values())) > 1:
        listed = ", ".join(f"{process}: {version}" for process, version in versions.items())
        raise PluginInactiveError(
            f"processes of this job have different versions of efficient-rollout ({listed}): "
            "install the same one on every node"
        )
