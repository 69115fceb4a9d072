"""One configuration for veRL: its own `ppo_trainer`, our groups on top, then the user's overrides."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from efficient_rollout.errors import ConfigError
from efficient_rollout.files import write_json
from efficient_rollout.metrics.step_file import FILE_NAME, set_aside
from efficient_rollout.provenance import provenance
from efficient_rollout.verl_plugin.recipes import register_recipes, shipped
from efficient_rollout.verl_plugin.settings import SETTINGS_PATH, needs_stock_replay_buffer

logger = logging.getLogger(__name__)

CONFIG_NAME = "efficient_rollout"
# The size that embeds nothing.
_OWN = "own"
_MODEL_PATH = "actor_rollout_ref.model.path"
_SAMPLER = "trainer.v1.sampler.custom_sampler"
_RAY_INIT, _RAY_ADDRESS = "ray_kwargs.ray_init", "RAY_ADDRESS"
# Ray takes these for a cluster that it starts, and refuses them for one that runs.
_OF_A_NEW_CLUSTER = ("address", "num_cpus", "num_gpus", "_system_config", "include_dashboard")


def config_dir() -> Path:
    """Our hydra groups."""
    return shipped("configs", proof=f"{CONFIG_NAME}.yaml")


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose the job's configuration.

    A model of the user's own is trained with veRL's defaults, or with an embedded policy's where its size is named.

    Raises:
        ConfigError: An override names nothing, or cannot be resolved.
    """
    GlobalHydra.instance().clear()
    register_recipes(config_dir())
    chosen = {override.partition("=")[0].lstrip("+") for override in overrides}
    size = [f"size={_OWN}"] if _MODEL_PATH in chosen and "size" not in chosen else []
    try:
        with hydra.initialize_config_dir(str(config_dir()), version_base=None):
            config = hydra.compose(CONFIG_NAME, overrides=[*size, *overrides])
        if f"{_RAY_INIT}.address" not in chosen:
            _join_running_cluster(config)
        if f"{_SAMPLER}.path" not in chosen and needs_stock_replay_buffer(config):
            OmegaConf.update(config, _SAMPLER, {"path": None, "name": None})
        OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        first_lines = " ".join(str(error).split("\n")[:2]).strip()
        raise ConfigError(f"cannot compose the configuration: {first_lines}") from error
    return config


def _join_running_cluster(config: DictConfig) -> None:
    """Where Ray's own variable names a cluster, as in `ray job submit`, run there, not in one that the job starts."""
    address = os.environ.get(_RAY_ADDRESS)
    ray_init = config.ray_kwargs.ray_init
    if address in (None, "", "local") or ray_init.get("address") != "local":
        return
    logger.warning("joining the Ray cluster at %s (%s), whose own slots count", address, _RAY_ADDRESS)
    with open_dict(ray_init):
        for name in _OF_A_NEW_CLUSTER:
            ray_init.pop(name, None)


def run_directory(config: DictConfig) -> Path:
    """Where the job's own files go."""
    return Path(config.trainer.default_local_dir).expanduser().resolve()


def prepare(config: DictConfig) -> None:
    """Fill in what depends on this machine: the embedded task's files, thread counts, a free metrics file."""
    directory = run_directory(config)
    config.trainer.default_local_dir = str(directory)
    _use_embedded_task(config, directory / "data")
    _use_absolute_profile(config)
    if config.trainer.device == "cpu":
        environment = config.ray_kwargs.ray_init.runtime_env
        with open_dict(environment):
            threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
            environment.env_vars = {**threads, **environment.get("env_vars", {})}
    directory.mkdir(parents=True, exist_ok=True)
    set_aside(directory / FILE_NAME)
    OmegaConf.save(config, directory / "config.yaml", resolve=True)
    write_json(directory / "provenance.json", provenance())


def _use_embedded_task(config: DictConfig, data_directory: Path) -> None:
    from efficient_rollout.tasks.dataset import reward_file, write_dataset
    from efficient_rollout.tasks.policy import ensure_policy

    task = config.embedded_task
    if task.size == _OWN:
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
            config.reward.custom_reward_function.path = str(reward_file(task.size))


def _require_own(config: DictConfig) -> None:
    needed = (_MODEL_PATH, "data.train_files", "data.val_files")
    missing = [name for name in needed if OmegaConf.select(config, name) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} must be set where the policy is your own (size={_OWN}); the embedded task goes with "
            "the embedded policies, size=nano, small, bench or smollm2"
        )


def _use_absolute_profile(config: DictConfig) -> None:
    """Ray's processes have working directories of their own."""
    profile = OmegaConf.select(config, f"{SETTINGS_PATH}.controller.profile")
    if profile is not None:
        OmegaConf.update(config, f"{SETTINGS_PATH}.controller.profile", str(Path(profile).expanduser().resolve()))
