"""Entry point `verl.plugins`: runs inside `import verl`, in every process of every job beside which this package is.

All that any job gets is two entries in veRL's registries, a platform that nothing chooses on a machine with an
accelerator, and a question behind veRL's own check of a configuration: whether the rollout is ours. The replica brings
what else a job of ours needs, in the process that starts engines. On a CPU, where stock veRL does not run at all, what
makes it run comes at once. veRL logs a plugin that fails to load at DEBUG and goes on: `replica.py` asks every process.
"""

import os

from verl.workers.rollout.base import _ROLLOUT_REGISTRY
from verl.workers.rollout.replica import RolloutReplicaRegistry

from efficient_rollout.own_logs import keep_own_warnings
from efficient_rollout.patching import apply_patches
from efficient_rollout.verl_plugin import ROLLOUT_NAME, metadata_bridge
from efficient_rollout.verl_plugin.ledger import CPU_PATCHES, JOB_PATCHES, PATCHES
from efficient_rollout.verl_plugin.platform import cpu_is_chosen

_SERVER_ADAPTER = "efficient_rollout.verl_plugin.adapter.EfficientServerAdapter"


def _load_replica() -> type:
    """Load the replica's class, in the process that starts the engines, before veRL's trainer makes its loggers."""
    from efficient_rollout.upstream import check_installed

    keep_own_warnings()
    check_installed("verl")
    apply_patches(PATCHES)
    from efficient_rollout.verl_plugin.replica import EfficientReplica

    return EfficientReplica


def vllm_plugins_allowed() -> list[str] | None:
    """Return the names that vLLM's own variable lets it load; None where it is not set and all are loaded."""
    names = os.environ.get("VLLM_PLUGINS")
    return None if names is None else names.split(",")


_ROLLOUT_REGISTRY[(ROLLOUT_NAME, "async")] = _SERVER_ADAPTER
RolloutReplicaRegistry.register(ROLLOUT_NAME, _load_replica)
apply_patches(JOB_PATCHES, leave_drifted=True)
if cpu_is_chosen():
    metadata_bridge.install()
    # veRL's own override: its FSDP engines are registered for "cuda" and run on any device torch has.
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
    # Whose job it is, nobody knows yet: what has drifted stays as it is, and stops a job of ours later.
    apply_patches(CPU_PATCHES, leave_drifted=True)
