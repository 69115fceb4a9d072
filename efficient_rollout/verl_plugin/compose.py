"""One configuration for veRL: its own `ppo_trainer`, our groups on top, then the user's overrides."""

import os
from collections.abc import Sequence
from pathlib import Path

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from efficient_rollout.errors import ConfigError
from efficient_rollout.files import write_json
from efficient_rollout.metrics.step_file import require_free
from efficient_rollout.provenance import provenance
from efficient_rollout.secrets import without_secrets
from efficient_rollout.upstream import check_installed
from efficient_rollout.verl_plugin.job_hydra import (
    CONFIG_NAME,
    MODEL_PATH,
    OWN_SIZE,
    JobConfigLoader,
    told_plainly,
)
from efficient_rollout.verl_plugin.recipes import register_recipes, shipped
from efficient_rollout.verl_plugin.settings import SETTINGS_PATH


def config_dir() -> Path:
    """Return the folder of our hydra groups."""
    return shipped("configs", proof=f"{CONFIG_NAME}.yaml")


def job_hydra(extra: str | None = None) -> Hydra:
    """Return hydra's own object, with every recipe and rule; it composes, and shows what it composed.

    Args:
        extra: A folder of the user's own, whose groups add to these.

    Raises:
        UnsupportedVersionError: There is no veRL, whose configuration is the ground, or another than is supported.
        ConfigError: `extra` is no folder.
    """
    check_installed("verl")
    register_recipes(config_dir())
    version.setbase(None)
    search_path = create_config_search_path(str(config_dir()))
    if extra is not None:
        if not Path(extra).is_dir():
            raise ConfigError(f"--config-dir: {extra} is not a directory")
        where = f"file://{Path(extra).resolve()}"
        search_path.prepend(provider="command-line", path=where, anchor=SearchPathQuery(provider="schema"))
    return Hydra(task_name="train", config_loader=JobConfigLoader(config_search_path=search_path))


def compose_config(overrides: Sequence[str], hydra: Hydra | None = None) -> DictConfig:
    """Compose the job's configuration; imports neither veRL nor torch.

    Args:
        overrides: The user's.
        hydra: From `job_hydra`; a new one by default.

    Raises:
        ConfigError: An override names nothing, or cannot be resolved.
    """
    hydra = hydra or job_hydra()
    with told_plainly(hydra):
        config = hydra.compose_config(CONFIG_NAME, list(overrides), RunMode.RUN)
        with open_dict(config):
            del config["hydra"]
        OmegaConf.to_container(config, resolve=True)
    return config


def run_directory(config: DictConfig) -> Path:
    """Return where the job's own files go."""
    return Path(config.trainer.default_local_dir).expanduser().resolve()


def prepare(config: DictConfig) -> None:
    """Fill in what depends on this machine: the embedded task's files and thread counts; write the run's own files.

    Raises:
        ConfigError: Another job writes into the run's directory now, or half of what a task needs is set.
    """
    directory = run_directory(config)
    require_free(directory)
    config.trainer.default_local_dir = str(directory)
    _use_embedded_task(config, directory / "data")
    _use_absolute_profile(config)
    if config.trainer.device == "cpu":
        environment = config.ray_kwargs.ray_init.runtime_env
        with open_dict(environment):
            threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
            environment.env_vars = {**threads, **environment.get("env_vars", {})}
    directory.mkdir(parents=True, exist_ok=True)
    written = without_secrets(OmegaConf.to_container(config, resolve=True))
    OmegaConf.save(OmegaConf.create(written), directory / "config.yaml")
    write_json(directory / "provenance.json", provenance())


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
        train_file, validation_file = write_dataset(
            data_directory,
            size=task.size,
            num_train=task.num_train,
            num_validation=task.num_validation,
            seed=task.seed,
            max_response_tokens=config.data.max_response_length,
        )
        config.data.train_files, config.data.val_files = str(train_file), str(validation_file)
        if config.reward.custom_reward_function.path is None:
            config.reward.custom_reward_function.path = reward.__file__


def _require_own(config: DictConfig) -> None:
    from efficient_rollout.tasks.training_plans import SIZES

    needed = (MODEL_PATH, "data.train_files", "data.val_files")
    missing = [name for name in needed if OmegaConf.select(config, name) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} must be set where the policy is your own (size={OWN_SIZE}); the embedded task goes "
            f"with the embedded policies, size={', '.join(SIZES)} or smollm2"
        )


def _use_absolute_profile(config: DictConfig) -> None:
    """Make the profile's path absolute: Ray's processes have working directories of their own."""
    profile = OmegaConf.select(config, f"{SETTINGS_PATH}.controller.profile")
    if profile is not None:
        OmegaConf.update(config, f"{SETTINGS_PATH}.controller.profile", str(Path(profile).expanduser().resolve()))
