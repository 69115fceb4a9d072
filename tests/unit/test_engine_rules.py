"""A profile of another machine, policy, scheme or version is refused before an engine starts, in one line."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from controller_support import a100_profile

pytest.importorskip("vllm")

import torch

from efficient_rollout.config import Settings
from efficient_rollout.controller.rule import Always, BatchThreshold
from efficient_rollout.cost_model.profile import Profile, save_profile
from efficient_rollout.engine import rules
from efficient_rollout.engine.rules import check_profile, profile_key, rule_from
from efficient_rollout.errors import ConfigError, ProfileError

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 128}  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("policy")
    (directory / "config.json").write_text(json.dumps(SIZES))
    return str(directory)


@pytest.fixture(scope="module")
def profile(policy) -> Profile:
    """A profile whose key is this machine's."""
    return dataclasses.replace(a100_profile(), key=profile_key(policy, "int8"))


def settings_with(path: Path, **controller: object) -> Settings:
    return Settings.parse({"controller": {"rule": "cost_model", "profile": str(path), **controller}})


def test_a_fitting_profile_gives_the_policy(policy, profile, tmp_path):
    save_profile(profile, tmp_path / "p.json")
    settings = settings_with(tmp_path / "p.json", max_draft_tokens=7)
    assert check_profile(settings, policy) is not None
    assert type(rule_from(settings, policy)).__name__ == "CostModelRule"


@pytest.mark.parametrize("field", ["hardware", "model_shape", "scheme", "versions", "parallel_layout"])
def test_a_profile_of_something_else_is_refused_in_one_line(policy, profile, tmp_path, field):
    other = dataclasses.replace(profile, key=dataclasses.replace(profile.key, **{field: "another"}))
    path = tmp_path / "p.json"
    save_profile(other, path)
    with pytest.raises(ProfileError) as raised:
        check_profile(settings_with(path), policy)
    message = str(raised.value)
    assert "\n" not in message
    assert f"{field}: 'another' != {getattr(profile.key, field)!r}" in message
    assert f"efficient-rollout calibrate --model {policy} --scheme int8 --verify-kernel auto --out {path}" in message


@pytest.mark.parametrize("text", [None, "", "{}", "[1"])
def test_a_missing_or_malformed_profile_is_refused_with_the_command_for_this_policy(policy, tmp_path, text):
    path = tmp_path / "p.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ProfileError) as raised:
        check_profile(settings_with(path), policy)
    assert "\n" not in str(raised.value)
    assert f"efficient-rollout calibrate --model {policy}" in str(raised.value)


def test_a_disabled_drafter_reads_no_profile(policy, tmp_path):
    settings = settings_with(tmp_path / "none.json").model_copy(update={"enabled": False})
    assert check_profile(settings, policy) is None


def test_policies_without_a_profile_need_none(policy):
    made = rule_from(Settings.parse({"controller": {"rule": "always", "num_draft_tokens": 2}}), policy)
    assert made == Always(2)
    threshold = {"rule": "batch_threshold", "max_running_requests": 3}
    assert rule_from(Settings.parse({"controller": threshold}), policy) == BatchThreshold(4, 3)
    settings = settings_with(Path("p.json"))
    without = settings.model_copy(update={"controller": settings.controller.model_copy(update={"profile": None})})
    with pytest.raises(ConfigError, match="needs a latency profile"):
        rule_from(without, policy)


def test_the_key_does_not_depend_on_a_process_s_threads(policy):
    """The engine's process runs with other threads than the one that starts it."""
    here, threads = profile_key(policy, "int8"), torch.get_num_threads()
    torch.set_num_threads(threads + 3)
    try:
        assert profile_key(policy, "int8") == here
    finally:
        torch.set_num_threads(threads)
    script = (
        "import dataclasses, json, sys\n"
        "from efficient_rollout.engine.rules import profile_key\n"
        "sys.stdout.write(json.dumps(dataclasses.asdict(profile_key(sys.argv[1], 'int8'))))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "5"}
    command = [sys.executable, "-c", script, policy]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert json.loads(result.stdout.splitlines()[-1]) == dataclasses.asdict(here)


def test_the_key_tells_how_many_cores_an_engine_gets(policy, monkeypatch):
    monkeypatch.setattr(rules, "cores_of_machine", lambda: ([2, 5, 7], 1))
    assert ", 3 cores" in profile_key(policy, "int8").hardware
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    before = profile_key(policy, "int8").hardware
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-1")
    assert profile_key(policy, "int8").hardware == f"{before}, threads bound to 0-1"
