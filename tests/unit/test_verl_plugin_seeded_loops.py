"""The manager of agent loops that a reproducible job gets; the seeds themselves are tested through real jobs."""

import pytest

pytest.importorskip("verl")

from verl.utils.import_utils import load_extern_type

from efficient_rollout.errors import ConfigError
from efficient_rollout.verl_plugin.compose import compose_config
from efficient_rollout.verl_plugin.replay_buffer import OrderedReplayBuffer
from efficient_rollout.verl_plugin.reproducible import make_reproducible
from efficient_rollout.verl_plugin.seeded_loops import SeededManager, SeededManagerTQ
from efficient_rollout.verl_plugin.settings import SETTINGS_PATH, rollout_settings

MANAGER = "+actor_rollout_ref.rollout.agent.agent_loop_manager_class"


def chosen(*overrides: str) -> str | None:
    config = compose_config(["size=nano", *overrides])
    make_reproducible(config, rollout_settings(config.actor_rollout_ref.rollout.custom))
    return config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class")


@pytest.mark.parametrize(("use_v1", "manager"), [(True, SeededManagerTQ), (False, SeededManager)])
def test_each_trainer_has_its_own(use_v1: bool, manager: type) -> None:
    name = f"{manager.__module__}.{manager.__name__}"
    wanted = (f"{SETTINGS_PATH}.rollout_seed=0", f"trainer.use_v1={use_v1}")
    assert chosen(*wanted) == name
    assert chosen(*wanted, f"{MANAGER}={name}") == name


def test_the_replay_buffer_that_is_named_exists() -> None:
    config = compose_config(["size=nano", f"{SETTINGS_PATH}.rollout_seed=0"])
    make_reproducible(config, rollout_settings(config.actor_rollout_ref.rollout.custom))
    sampler = config.trainer.v1.sampler.custom_sampler
    assert load_extern_type(sampler.path, sampler.name) is OrderedReplayBuffer


def test_a_job_without_a_seed_keeps_its_own() -> None:
    assert chosen() is None
    assert chosen(f"{MANAGER}=mine.Manager") == "mine.Manager"


def test_a_manager_of_the_users_own_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rollout_seed is set, and so is .*mine\.Manager"):
        chosen(f"{SETTINGS_PATH}.rollout_seed=1", f"{MANAGER}=mine.Manager")
