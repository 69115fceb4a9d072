"""What of a job's configuration depends on this machine, and the files of its run."""

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from efficient_rollout.errors import ConfigError
from efficient_rollout.metrics.step_file import require_free
from efficient_rollout.training_job import write_run_files
from efficient_rollout.verl_plugin.compose import MODEL_PATH, OWN_SIZE
from efficient_rollout.verl_plugin.settings import SETTINGS_PATH, run_directory


def prepare(config: DictConfig) -> None:
    """Fill in what depends on this machine: the embedded task's files and thread counts; write the run's own files.

    Raises:
        ConfigError: Another job writes into the run's directory now, or half of what a task needs is set.
    """
    directory = run_directory(config)
    require_free(directory)
    config.trainer.default_local_dir = str(directory)
    _use_embedded_task(config, directory / "data")
    # Ray's processes have working directories of their own.
    profile = OmegaConf.select(config, f"{SETTINGS_PATH}.controller.profile")
    if profile is not None:
        OmegaConf.update(config, f"{SETTINGS_PATH}.controller.profile", str(Path(profile).expanduser().resolve()))
    if config.trainer.device == "cpu":
        environment = config.ray_kwargs.ray_init.runtime_env
        with open_dict(environment):
            threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
            environment.env_vars = {**threads, **environment.get("env_vars", {})}
    write_run_files(directory, OmegaConf.to_container(config, resolve=True))


def _use_embedded_task(config: DictConfig, data_directory: Path) -> None:
    from efficient_rollout.tasks import reward
    from efficient_rollout.tasks.dataset import write_dataset
    from efficient_rollout.tasks.policy import ensure_policy

    task = config.embedded_task
    if task.size == OWN_SIZE:
        _require_own(config)
    if config.actor_rollout_ref.model.path is None:
        config.actor_rollout_ref.model.path = str(ensure_policy(task.size))
    missing = [name for name in ("train_files", "val_files") if config.data[name] is None]
    if len(missing) == 1:
        raise ConfigError(f"data.{missing[0]} is not set: set both files, or neither for the embedded task")
    if missing:
        counts = {name: task[name] for name in ("size", "num_train", "num_validation", "seed")}
        files = write_dataset(data_directory, **counts, max_response_tokens=config.data.max_response_length)
        config.data.train_files, config.data.val_files = map(str, files)
        if config.reward.custom_reward_function.path is None:
            config.reward.custom_reward_function.path = reward.__file__


def _require_own(config: DictConfig) -> None:
    from efficient_rollout.tasks.training_plans import SIZES

    needed = (MODEL_PATH, "data.train_files", "data.val_files")
    if missing := [name for name in needed if OmegaConf.select(config, name) is None]:
        raise ConfigError(
            f"{', '.join(missing)} must be set where the policy is your own (size={OWN_SIZE}); the embedded task goes "
            f"with the embedded policies, size={', '.join(SIZES)} or smollm2"
        )
