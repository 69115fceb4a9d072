"""Where this package's settings stand in a veRL configuration."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from efficient_rollout.config import CONFIG_KEY, Settings

SETTINGS_PATH = f"actor_rollout_ref.rollout.custom.{CONFIG_KEY}"


def rollout_settings(custom: Mapping[str, Any] | None) -> Settings:
    """Parse the settings in `rollout.custom`; a job without any gets the defaults.

    Raises:
        ConfigError: See `Settings.parse`.
    """
    raw = None if custom is None else custom.get(CONFIG_KEY)
    if OmegaConf.is_config(raw):
        raw = OmegaConf.to_container(raw, resolve=True)
    return Settings.parse(raw, where=SETTINGS_PATH)
