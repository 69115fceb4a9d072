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


def name_agent_loops(config: DictConfig, settings: Settings) -> None:
    """Name the manager in the configuration, where requests are to get something of the settings'.

    The replay buffer too, where rollouts are to be reproducible.

    Raises:
        ConfigError: The job has one of its own already.
    """
    is_seeded = settings.rollout_seed is not None
    if not is_seeded and settings.controller.validation_max_draft_tokens is None:
        return
    setting = f"{SETTINGS_PATH}.{'rollout_seed' if is_seeded else 'controller.validation_max_draft_tokens'}"
    manager = f"{_LOOPS}.{'SeededManagerTQ' if config.trainer.use_v1 else 'SeededManager'}"
    agent = config.actor_rollout_ref.rollout.agent
    if agent.get("agent_loop_manager_class") not in (None, manager):
        raise ConfigError(
            f"{setting} is set, and so is actor_rollout_ref.rollout.agent.agent_loop_manager_class "
            f"({agent.agent_loop_manager_class}), which would have to tell requests of it: leave one of them out, or "
            f"derive yours from {manager}"
        )
    with open_dict(agent):
        agent.agent_loop_manager_class = manager
    if not is_seeded or not config.trainer.use_v1:
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
