"""Names the agent loops of `seeded_loops.py`, and the replay buffer that goes with them, in a job's configuration.

By their names, so that a job's first process need not import the trainers that they stand in.
"""

import logging

from omegaconf import DictConfig, open_dict

from efficient_rollout.config import Settings
from efficient_rollout.errors import ConfigError
from efficient_rollout.verl_plugin.settings import SETTINGS_PATH, needs_stock_replay_buffer

logger = logging.getLogger(__name__)

_PACKAGE = "efficient_rollout.verl_plugin"
_LOOPS = f"{_PACKAGE}.seeded_loops"
_BUFFERS, _BUFFER = f"{_PACKAGE}.replay_buffer", "OrderedReplayBuffer"


def make_reproducible(config: DictConfig, settings: Settings) -> None:
    """Name the manager and the replay buffer in the configuration, where rollouts are to be reproducible.

    Raises:
        ConfigError: The job has one of its own already.
    """
    if settings.rollout_seed is None:
        return
    manager = f"{_LOOPS}.{'SeededManagerTQ' if config.trainer.use_v1 else 'SeededManager'}"
    agent = config.actor_rollout_ref.rollout.agent
    _take_place(agent, "actor_rollout_ref.rollout.agent", "agent_loop_manager_class", manager)
    if not config.trainer.use_v1:
        return
    if needs_stock_replay_buffer(config):
        logger.warning(
            "%s.rollout_seed: requests are seeded, but which responses a step is trained on, and in which order, "
            "depends on time: algorithm.filter_groups and asynchronous trainers take them as they come",
            SETTINGS_PATH,
        )
        return
    sampler, ours = config.trainer.v1.sampler.custom_sampler, f"pkg://{_BUFFERS}"
    if sampler.path not in (None, ours):
        raise ConfigError(
            f"{SETTINGS_PATH}.rollout_seed is set, and so is trainer.v1.sampler.custom_sampler ({sampler.path}), which "
            f"would have to put a batch in order: leave one of them out, or derive yours from {_BUFFERS}.{_BUFFER}"
        )
    sampler.path, sampler.name = ours, _BUFFER


def _take_place(group: DictConfig, where: str, key: str, ours: str) -> None:
    if group.get(key) not in (None, ours):
        raise ConfigError(
            f"{SETTINGS_PATH}.rollout_seed is set, and so is {where}.{key} ({group[key]}), which would have to give "
            f"requests their seeds: leave one of them out, or derive yours from {ours}"
        )
    with open_dict(group):
        group[key] = ours
