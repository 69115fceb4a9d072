"""What `efficient-rollout train` answers without a job, and how soon: nothing large is imported first."""

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytest.importorskip("hydra")
if find_spec("verl") is None:
    pytest.skip("veRL's own configuration is the ground", allow_module_level=True)

import yaml

from efficient_rollout.errors import ConfigError
from efficient_rollout.verl_plugin.main import train
from efficient_rollout.verl_plugin.recipes import recipe_folders
from efficient_rollout.verl_plugin.train_options import parse_options

LARGE = ("torch", "verl", "vllm", "ray", "transformers", "tensordict")
ALONE = f"""
import sys
from efficient_rollout.__main__ import main
code = main(sys.argv[1:])
print("code", code, "imported", [name for name in {LARGE} if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["recipe=grppo"], 2, r"error: [^\n]*did you mean recipe=grpo\? recipe= takes [^\n]*\n"),
        (["+actor_rollout_ref.rollout.custom.efficient_rollout.drafter.bits=3"], 2, r"error: .*unknown setting.*"),
        (["--cfg", "job"], 0, ""),
    ],
)
def test_it_is_answered_alone_and_before_anything_large_is_imported(arguments, code, told):
    command = [sys.executable, "-c", ALONE, "train", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == f"code {code} imported []"
    assert re.fullmatch(f"efficient-rollout train: {told}" if told else "", result.stderr, re.DOTALL), result.stderr


def test_the_composed_configuration_is_the_jobs(capsys):
    assert train(["trainer.nnodes=3", "--cfg", "job", "actor_rollout_ref.model.path=/own"]) == 0
    composed = yaml.safe_load(capsys.readouterr().out)
    assert composed["trainer"]["nnodes"] == 3
    assert composed["embedded_task"] == {"size": "own"}, "which a model of the user's own brings along"
    assert "hydra" not in composed


def test_a_part_of_it_resolved(capsys):
    assert train(["--cfg", "job", "--resolve", "--package", "trainer", "recipe=grpo_quickstart"]) == 0
    trainer = yaml.safe_load(capsys.readouterr().out)
    assert trainer["experiment_name"] == "grpo_quickstart_threshold"
    assert trainer["default_local_dir"] == "outputs/efficient_rollout/grpo_quickstart_threshold"


def test_help_lists_every_recipe_and_marks_what_is_chosen(capsys):
    assert train(["--help"]) == 0
    words = re.split(r"[\s,]+", capsys.readouterr().out)
    assert {*recipe_folders(), "grpo*", "nano*", "batch_threshold*", "cost_model", "--multirun"} <= set(words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cfg", "job", "-m"], "only one of --multirun, --cfg"),
        (["--resolve"], "--resolve goes with --cfg"),
        (["--package", "trainer"], "--package goes with --cfg"),
        (["--config-name", "x"], "--config-name has no meaning here"),
        (["-cn", "x"], "--config-name has no meaning here"),
    ],
)
def test_flags_that_make_no_sense_together_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        parse_options(arguments)


def test_a_flag_that_hydra_lacks_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        parse_options(["--dry-run"])
    assert end.value.code == 2
    assert "--dry-run" in capsys.readouterr().err
