"""veRL's task runners, which first make sure that the plugin is in their process too."""

from collections.abc import Callable
from typing import Any

import ray
from verl.trainer.main_ppo import TaskRunnerV1

from efficient_rollout.errors import PluginInactiveError
from efficient_rollout.verl_plugin.status import plugin_status


def _require_plugin() -> None:
    if not plugin_status()["active"]:
        raise PluginInactiveError(
            "the plugin of efficient_rollout did not load in the processes of the job, although it did in this one. "
            "Install efficient-rollout on every node, and let VERL_USE_EXTERNAL_PLUGINS be unset, 'auto', or "
            "include 'efficient_rollout' in ray_kwargs.ray_init.runtime_env too"
        )


class AfterRayStarted:
    """Stands in for the actor class in `run_ppo`, which asks for the actor as soon as it has started Ray.

    Args:
        actor_class: The class to start.
        call: What to do first.
    """

    def __init__(self, actor_class: Any, call: Callable[[], None]) -> None:
        self._actor_class = actor_class
        self._call = call

    def remote(self) -> Any:
        """Call, then start the actor."""
        self._call()
        return self._actor_class.remote()

    def options(self, **options: Any) -> Any:
        """Call, then pass the options on; `.remote()` of the result starts the actor."""
        self._call()
        return self._actor_class.options(**options)


def task_runner_class(*, use_v1: bool) -> Any:
    """Return veRL's actor class for the current or the legacy trainer, with the check in front."""
    actor_class = TaskRunnerV1
    if not use_v1:
        # It imports the legacy trainer, and vLLM with it.
        from verl.trainer.main_ppo_v0 import TaskRunner as actor_class
    stock = actor_class.__ray_metadata__.modified_class

    class CheckedTaskRunner(stock):
        """Refuses to train in a process without the plugin."""

        def run(self, config: Any) -> None:
            """Check, then do as stock does."""
            _require_plugin()
            super().run(config)

    return ray.remote(CheckedTaskRunner)
