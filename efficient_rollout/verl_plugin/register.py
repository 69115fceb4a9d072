"""Entry point `verl.plugins`: runs inside `import verl`, in every process of a job.

veRL logs a plugin that fails to load at DEBUG and goes on, so a failure is logged here as well. Nothing depends
on the plugin silently: without it the rollout name does not exist, and `replica.py` asks every process.
"""

import importlib.metadata
import logging
import os
from collections.abc import Mapping
from typing import Any

from efficient_rollout.verl_plugin import ROLLOUT_NAME, metadata_bridge

logger = logging.getLogger(__name__)

_SERVER_ADAPTER = "efficient_rollout.verl_plugin.adapter.EfficientServerAdapter"


def _load_replica() -> type:
    from efficient_rollout.verl_plugin.replica import EfficientReplica

    return EfficientReplica


def _register() -> None:
    metadata_bridge.install()
    # The import registers the platform; the first call of get_platform() must come after it.
    from verl.plugin.platform import get_platform

    from efficient_rollout.verl_plugin.platform import PLATFORM_NAME

    if get_platform().device_name == PLATFORM_NAME:
        # veRL's own override: its FSDP engines are registered for "cuda" and run on any device torch has.
        os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")

    from verl.workers.rollout.base import _ROLLOUT_REGISTRY
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    _ROLLOUT_REGISTRY[(ROLLOUT_NAME, "async")] = _SERVER_ADAPTER
    RolloutReplicaRegistry.register(ROLLOUT_NAME, _load_replica)

    from efficient_rollout.patching import apply_patches
    from efficient_rollout.verl_plugin.ledger import PATCHES

    apply_patches(PATCHES)


def patches_in_place(states: Mapping[str, str]) -> bool:
    """Whether every patch of a ledger is applied or not needed."""
    return all(state in ("applied", "not needed") for state in states.values())


def plugin_status() -> dict[str, Any]:
    """Versions, patches and device of the plugin in this process."""
    from verl.plugin.platform import get_platform

    from efficient_rollout.patching import state
    from efficient_rollout.verl_plugin.ledger import PATCHES

    patches = {patch.name: state(patch) for patch in PATCHES}
    return {
        "active": patches_in_place(patches),
        "version": importlib.metadata.version("efficient-rollout"),
        "verl": importlib.metadata.version("verl"),
        "platform": get_platform().device_name,
        "patches": patches,
    }


def vllm_plugins_allowed() -> list[str] | None:
    """Names that vLLM's own variable lets it load; None where it is not set and all are loaded."""
    names = os.environ.get("VLLM_PLUGINS")
    return None if names is None else names.split(",")


try:
    _register()
except Exception as error:
    logger.error("efficient_rollout did not load in process %d: %s: %s", os.getpid(), type(error).__name__, error)
    raise
