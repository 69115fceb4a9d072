"""What this package needs of the installed veRL, without starting a job."""

import itertools
import json
import subprocess
import sys

import pytest

pytest.importorskip("verl")

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from efficient_rollout.config import Settings
from efficient_rollout.errors import ConfigError
from efficient_rollout.patching import describe, state
from efficient_rollout.verl_plugin import ROLLOUT_NAME
from efficient_rollout.verl_plugin.checks import validate
from efficient_rollout.verl_plugin.compose import compose_config, config_dir
from efficient_rollout.verl_plugin.ledger import PATCHES
from efficient_rollout.verl_plugin.prepare import prepare
from efficient_rollout.verl_plugin.settings import job_settings

GROUPS = {
    group.name: sorted(path.stem for path in group.glob("*.yaml")) for group in config_dir().iterdir() if group.is_dir()
}


def test_no_patch_has_drifted():
    assert [patch.name for patch in PATCHES if state(patch) == "drifted"] == []
    for row in describe(PATCHES):
        assert row["reason"]
        assert row["remove_when"]


def test_import_verl_alone_makes_a_process_ready_and_again_changes_nothing():
    """In a fresh process, as in every process of a job."""
    script = """
import importlib, json, sys
import verl
register = sys.modules["efficient_rollout.verl_plugin.register"]
from efficient_rollout.verl_plugin.ledger import plugin_status
first = plugin_status()
finders = len(sys.meta_path)
importlib.reload(register)
from verl.plugin.platform import get_platform
from verl.workers.rollout.base import get_rollout_class
from verl.workers.rollout.replica import RolloutReplicaRegistry
import torch
print(json.dumps({
    "first": first, "second": plugin_status(), "same_finders": finders == len(sys.meta_path),
    "names": sorted(RolloutReplicaRegistry._registry), "platform": get_platform().device_name,
    "accelerator_build": torch.version.cuda is not None or torch.version.hip is not None,
    "vllm_imported": "vllm" in sys.modules}))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["first"]["active"]
    assert told["second"] == told["first"]
    assert told["same_finders"]
    assert ROLLOUT_NAME in told["names"]
    assert not told["vllm_imported"], "the plugin must stay light: it runs in every process"
    assert told["platform"] == "cpu" or told["accelerator_build"]


@pytest.mark.parametrize(
    "choice", [f"{group}={name}" for group, names in GROUPS.items() for name in names] + ["trainer.use_v1=false"]
)
def test_every_shipped_file_composes(choice, tmp_path):
    config = compose_config([choice, f"actor_rollout_ref.model.path={tmp_path}"])
    assert config.actor_rollout_ref.rollout.name == ROLLOUT_NAME
    assert isinstance(job_settings(config), Settings)


@pytest.fixture(scope="module")
def policy_stub(tmp_path_factory) -> str:
    """A policy's configuration and tokenizer: all that veRL's checks read."""
    from transformers import Qwen3Config

    from efficient_rollout.tasks.tokenizer import VOCAB_SIZE, build_tokenizer

    directory = tmp_path_factory.mktemp("policy")
    Qwen3Config(
        vocab_size=VOCAB_SIZE, hidden_size=64, num_hidden_layers=1, architectures=["Qwen3ForCausalLM"]
    ).save_pretrained(directory)
    build_tokenizer(128).save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize(("recipe", "size"), list(itertools.product(GROUPS["recipe"], GROUPS["size"])))
def test_every_recipe_passes_verls_own_checks(recipe, size, policy_stub):
    validate(compose_config([f"recipe={recipe}", f"size={size}", f"actor_rollout_ref.model.path={policy_stub}"]))


def test_a_policy_of_ones_own_is_trained_with_verls_defaults():
    own = compose_config(["actor_rollout_ref.model.path=/own", "data.train_files=a", "data.val_files=b"])
    with initialize_config_module("verl.trainer.config", version_base=None):
        stock = compose("ppo_trainer", overrides=["actor_rollout_ref.model.path=/own"])
    for name in ("train_batch_size", "max_prompt_length", "max_response_length"):
        assert own.data[name] == stock.data[name]
    for name in ("optim", "ppo_mini_batch_size"):
        assert own.actor_rollout_ref.actor[name] == stock.actor_rollout_ref.actor[name]
    named = compose_config(["size=nano", "actor_rollout_ref.model.path=/own"])
    assert named.data.max_response_length != stock.data.max_response_length, "a size that is named is kept"


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        (["actor_rollout_ref.model.path=/own"], "data.train_files, data.val_files must be set"),
        (["actor_rollout_ref.model.path=/own", "data.val_files=b"], "data.train_files must be set"),
        (["size=own", "data.train_files=a", "data.val_files=b"], "actor_rollout_ref.model.path must be set"),
    ],
)
def test_a_policy_of_ones_own_is_not_asked_the_embedded_tasks_questions(overrides, missing, tmp_path):
    with pytest.raises(ConfigError, match=missing):
        prepare(compose_config([*overrides, f"trainer.default_local_dir={tmp_path}"]))


def test_the_groups_reach_the_settings():
    more = "+actor_rollout_ref.rollout.custom.efficient_rollout.controller.max_draft_tokens=3"
    settings = job_settings(compose_config(["drafter=int4", "controller=always", more]))
    assert settings.enabled
    assert settings.drafter.scheme == "int4"
    assert (settings.controller.rule, settings.controller.max_draft_tokens) == ("always", 3)


def test_all_of_verls_options_stay_available():
    config = compose_config(["actor_rollout_ref.actor.clip_ratio_high=0.28", "trainer.save_freq=7"])
    assert config.actor_rollout_ref.actor.clip_ratio_high == 0.28
    assert config.trainer.save_freq == 7
    assert OmegaConf.select(config, "critic.optim.lr") is not None
