"""A job whose engines take no new weights, for the negative control; Ray's processes import its classes from here."""

import sys
from typing import Any

from efficient_rollout.openrlhf_plugin import engine_actor
from efficient_rollout.openrlhf_plugin.main import launch
from efficient_rollout.openrlhf_plugin.worker_extension import EfficientWorkerWrap


class UnsyncedWorkerWrap(EfficientWorkerWrap):
    """Receives every parameter and drops it."""

    def _take(self, name: str, weight: Any, *, is_last: bool) -> None:
        pass


class UnsyncedEngineActor(engine_actor.EngineActor):
    """With that worker extension."""

    worker_extension = "openrlhf_unsynced.UnsyncedWorkerWrap"


if __name__ == "__main__":
    import openrlhf_unsynced

    engine_actor.EngineActor = openrlhf_unsynced.UnsyncedEngineActor
    raise SystemExit(launch(sys.argv[1:]))
