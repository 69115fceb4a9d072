"""veRL's task runners, which first make sure that the plugin is in their process too."""

import sys
from typing import Any

import ray
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.main_ppo_v0 import TaskRunner

from efficient_rollout.errors import PluginInactiveError

_REGISTER = "efficient_rollout.verl_plugin.register"


def _require_plugin() -> None:
    # Looked up, not imported: an import would load what is to be found out.
    register = sys.modules.get(_REGISTER)
    if register is None or not register.plugin_status()["active"]:
        raise PluginInactiveError(
            "the plugin of efficient_rollout did not load in the processes of the job, although it did in this one. "
            "Install efficient-rollout on every node, and let VERL_USE_EXTERNAL_PLUGINS be unset, 'auto', or "
            "include 'efficient_rollout' in ray_kwargs.ray_init.runtime_env too"
        )


def task_runner_class(*, use_v1: bool) -> Any:
    """veRL's actor class for the current or the legacy trainer, with the check in front."""
    stock = (TaskRunnerV1 if use_v1 else TaskRunner).__ray_metadata__.modified_class

    class CheckedTaskRunner(stock):
        """Refuses to train in a process without the plugin."""

        def run(self, config: Any) -> None:
            """Check, then stock."""
            _require_plugin()
            super().run(config)

    return ray.remote(CheckedTaskRunner)
