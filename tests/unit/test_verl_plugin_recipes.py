"""Every recipe is a job that veRL accepts, in every arm of the ablation, and says what was run of it."""

from pathlib import Path

import pytest

pytest.importorskip("verl")

from omegaconf import DictConfig
from rare_cases import cases

from efficient_rollout.tasks.policy import ensure_policy
from efficient_rollout.verl_plugin.checks import validate
from efficient_rollout.verl_plugin.compose import compose_config
from efficient_rollout.verl_plugin.recipes import recipe_folders
from efficient_rollout.verl_plugin.settings import job_settings

RECIPES = tuple(recipe_folders())
RULES = {"always": "always", "threshold": "batch_threshold", "on": "cost_model"}
PUBLISHED = ("grpo_qwen2_5_7b_math", "grpo_qwen2_5_14b_math", "grpo_llama3_1_8b_math")


@pytest.fixture(scope="module")
def a_model() -> str:
    """In the place of a model that would be fetched: veRL reads a critic's configuration to check it."""
    return f"actor_rollout_ref.model.path={ensure_policy('nano')}"


def settings(config: DictConfig):
    return job_settings(config)


# Every arm of one recipe, and one of every other: composing takes a second.
@pytest.mark.parametrize(
    ("recipe", "arm"), [*((name, "on") for name in RECIPES), *(("dapo_qwen2_5_32b", arm) for arm in ("off", *RULES))]
)
def test_it_composes_and_verl_accepts_it(recipe, arm, a_model):
    config = compose_config([f"recipe={recipe}", f"efficient_rollout={arm}", a_model])
    chosen = settings(config)
    assert chosen.enabled is (arm != "off")
    if arm != "off":
        assert chosen.controller.rule == RULES[arm]
    assert config.trainer.experiment_name == f"{recipe}_{arm}", "arms of a recipe have run directories of their own"
    validate(config)


@pytest.mark.parametrize("recipe", cases(RECIPES, rare=PUBLISHED))
def test_one_step_of_it_fits_a_cpu(recipe, a_model):
    config = compose_config([f"recipe={recipe}", "smoke=nano"])
    assert (config.trainer.device, config.embedded_task.size) == ("cpu", "nano")
    assert config.actor_rollout_ref.model.path is None, "the embedded policy"
    assert config.data.train_files is None, "the embedded task"
    assert config.actor_rollout_ref.rollout.tensor_model_parallel_size == 1
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == (1, 1)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (32, 64)
    assert config.trainer.total_training_steps == 1
    # What makes the recipe this one stays.
    whole = compose_config([f"recipe={recipe}"])
    assert config.algorithm == whole.algorithm
    assert config.actor_rollout_ref.rollout.n == whole.actor_rollout_ref.rollout.n
    assert config.critic.enable == whole.critic.enable
    validate(compose_config([f"recipe={recipe}", "smoke=nano", a_model]))


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_the_published_settings_are_the_published_ones(recipe):
    config = compose_config([f"recipe={recipe}"])
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (config.data.train_batch_size, rollout.n, rollout.temperature) == (128, 8, 1.0)
    assert (config.data.max_response_length, rollout.tensor_model_parallel_size) == (8192, 1)
    assert (actor.optim.lr, actor.use_kl_loss, actor.kl_loss_coef) == (5e-7, True, 1e-4)


def test_a_controller_of_the_users_own_stands():
    config = compose_config(["recipe=grpo_quickstart", "efficient_rollout=on", "controller=always"])
    assert settings(config).controller.rule == "always"


def test_dynamic_sampling_runs_on_verls_own_replay_buffer():
    sampler = compose_config(["recipe=dapo_qwen2_5_32b", "smoke=nano"]).trainer.v1.sampler.custom_sampler
    assert sampler.path is None
    assert compose_config(["recipe=grpo"]).trainer.v1.sampler.custom_sampler.path is not None


def test_a_recipes_own_code_is_found():
    multi_turn = compose_config(["recipe=grpo_multi_turn_tool"]).actor_rollout_ref.rollout.multi_turn
    assert Path(multi_turn.function_tool_path).is_file()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_readme_says_what_ran(recipe):
    text = (recipe_folders()[recipe] / "README.md").read_text(encoding="utf-8")
    first_lines = " ".join(text.splitlines()[:8])
    is_for_gpus = compose_config([f"recipe={recipe}"]).trainer.device == "cuda"
    assert ("never run whole" in first_lines) is is_for_gpus
    assert f"efficient-rollout train recipe={recipe}" in text
    for part in ("## Hardware", "## Data", "## What to expect"):
        assert part in text
