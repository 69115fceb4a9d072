"""Where this package's settings stand in a veRL configuration, and what else is read out of one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from efficient_rollout.config import CONFIG_KEY, Settings

SETTINGS_PATH = f"actor_rollout_ref.rollout.custom.{CONFIG_KEY}"


def rollout_settings(custom: Mapping[str, Any] | None) -> Settings:
    """Parse the settings in `rollout.custom`, as `Settings.parse` does; a job without any gets training's defaults."""
    raw = None if custom is None else custom.get(CONFIG_KEY)
    if OmegaConf.is_config(raw):
        raw = OmegaConf.to_container(raw, resolve=True)
    return Settings.parse(raw, where=SETTINGS_PATH).for_training()


def job_settings(config: DictConfig) -> Settings:
    """Parse the settings of a whole job; see `rollout_settings`."""
    return rollout_settings(config.actor_rollout_ref.rollout.get("custom"))


def run_directory(config: DictConfig) -> Path:
    """Return where the job's own files go."""
    return Path(config.trainer.default_local_dir).expanduser().resolve()


def needs_stock_replay_buffer(config: DictConfig) -> bool:
    """Tell whether the job asks for more than `replay_buffer.py` does: dynamic sampling, or an asynchronous trainer."""
    return config.trainer.v1.trainer_mode != "sync" or config.algorithm.filter_groups.enable
