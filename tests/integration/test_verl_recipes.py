"""One step of every recipe, on the nano policy; from the installed wheel, outside the checkout."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl")

from job_support import log_of, start_job
from wheel_support import build_wheel, make_environment

from efficient_rollout.metrics import names
from efficient_rollout.verl_plugin.recipes import recipe_folders

pytestmark = [pytest.mark.verl, pytest.mark.slow]

# Sizes that a README gives beside the smoke step.
BESIDE = {"dapo_qwen2_5_32b": ("reward.reward_kwargs.overlong_buffer_cfg.len=16",)}


@pytest.fixture(scope="module")
def programs(repository, tmp_path_factory) -> Path:
    """Of an environment that has this package from its wheel."""
    wheel = build_wheel(repository, tmp_path_factory.mktemp("wheel"))
    return make_environment(tmp_path_factory.mktemp("environment"), wheel)


def step_of(recipe: str, programs: Path, directory: Path) -> dict[str, Any]:
    """The metrics of a step that always drafts, once the job has ended well."""
    overrides = (f"recipe={recipe}", "smoke=nano", "efficient_rollout=always", *BESIDE.get(recipe, ()))
    arguments = ["-P", "-m", "efficient_rollout", "train", f"trainer.default_local_dir={directory}", *overrides]
    log_of(start_job(arguments, directory, python=programs / "python"), directory)
    (line,) = (directory / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(line)
    assert metrics["training/rollout_probs_diff_mean"] < 1e-4, (
        "the engine samples from the trainer's policy, in float32"
    )
    assert metrics[names.SPECULATIVE_TICK_SHARE] > 0.5
    assert metrics[names.MEAN_ACCEPTED_LENGTH] > 3.0
    assert metrics[names.DRAFTER_FAULTS] == 0
    return metrics


@pytest.mark.parametrize("recipe", recipe_folders())
def test_a_step(recipe, programs, tmp_path):
    metrics = step_of(recipe, programs, tmp_path)
    assert ("critic/vf_loss" in metrics) is recipe.startswith("ppo")
    # Few of the tool's questions are answered right at first: a step's groups may be right or wrong as a whole.
    assert metrics["actor/grad_norm"] > 0.0 or recipe == "grpo_multi_turn_tool"
    if recipe == "grpo_multi_turn_tool":
        # Counted with the prompt: six are three of the policy's, and two of the tool's between them.
        assert metrics["num_turns/max"] == 6
        assert metrics["num_turns/mean"] > 3, "most sums have more than two operands, and call the tool"
    assert json.loads((tmp_path / "provenance.json").read_text())["commit"] is None, "not the checkout's modules"
    assert_drawn(programs, tmp_path)


def assert_drawn(programs: Path, directory: Path) -> None:
    """The installed command draws the run."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(programs / "efficient-rollout"), "report", str(directory)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory, env=environment)
    assert result.returncode == 0, result.stderr
    assert "this run holds no timeline" not in (directory / "report.html").read_text()
