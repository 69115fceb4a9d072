"""What the processes of a veRL job import, imported once: on one machine's CPU, where importing is most of a start."""

import contextlib
import os
from collections.abc import Iterator

from omegaconf import DictConfig, open_dict

from efficient_rollout.preload.server import preloaded_python

# Nearly all of what `import verl`, its trainers and its vLLM server import of others. Ray is not among them: importing
# it reads variables that its processes are told apart by. Nor is anything that imports it.
_MODULES = (
    "torch",
    "tensordict",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "peft",
    "torchdata.stateful_dataloader",
    "datasets",
    "vllm.engine.arg_utils",
    "vllm.lora.worker_manager",
)
_PYTHON, _VARIABLES = "py_executable", "env_vars"


@contextlib.contextmanager
def preloaded(config: DictConfig) -> Iterator[None]:
    """Let the Ray cluster that the job is about to start make its processes of one that has imported already.

    Through Ray's own option for the Python of its processes; a runtime environment of the user's own is left as it is.
    Only for a job on CPUs that starts a cluster of its own: an accelerator's libraries must not be shared by forks, and
    another node has no such process.
    """
    ray_init = config.ray_kwargs.ray_init
    environment = ray_init.get("runtime_env") or {}
    # Any other option may mean other packages, or another Python.
    has_its_own = any(value is not None for name, value in environment.items() if name != _VARIABLES)
    if config.trainer.device != "cpu" or ray_init.get("address") != "local" or has_its_own:
        yield
        return
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    variables = {**get_ppo_ray_runtime_env(config)[_VARIABLES], **environment.get(_VARIABLES, {})}
    with preloaded_python(_MODULES, {**os.environ, **variables}) as command:
        with open_dict(ray_init):
            ray_init.runtime_env = {**environment, _PYTHON: command}
        yield
