"""Profiles that are made when first needed: once per machine, policy, scheme and engine, however many want one."""

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from controller_support import a100_profile

pytest.importorskip("vllm")

import torch

from efficient_rollout.config import Settings
from efficient_rollout.controller.rule import Always, BatchThreshold
from efficient_rollout.cost_model.profile import Profile, load_profile, save_profile
from efficient_rollout.engine import profiles
from efficient_rollout.engine.profiles import (
    CalibrationRequest,
    check_profile,
    ensure_profile,
    profile_key,
    rule_from,
    with_profile,
)
from efficient_rollout.errors import ConfigError, InputFileError, ProfileError
from efficient_rollout.measuring.profile_process import probe_settings

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 128}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "efficient_rollout" / "profiles"


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("policy")
    (directory / "config.json").write_text(json.dumps(SIZES))
    return str(directory)


@pytest.fixture(scope="module")
def profile(policy) -> Profile:
    return dataclasses.replace(a100_profile(), key=profile_key(policy, "int8"))


@pytest.fixture
def requests(profile, monkeypatch) -> list[CalibrationRequest]:
    """What the process that measures was asked for; one that stands for it writes a profile."""
    asked: list[CalibrationRequest] = []

    def write(request: CalibrationRequest) -> None:
        asked.append(request)
        save_profile(profile, Path(request.out))

    monkeypatch.setattr(profiles, "_measure_in_own_process", write)
    return asked


def settings_for(rule_name: str, **more: object) -> Settings:
    return Settings.parse({"controller": {"rule": rule_name}, **more})


def test_a_profile_is_measured_once_and_found_again(policy, tmp_path, requests):
    first = ensure_profile(policy, Settings())
    assert ensure_profile(policy, Settings()) == first
    assert load_profile(first).key == profile_key(policy, "int8")
    (request,) = requests
    assert request.model == policy
    asked = Settings.parse(request.settings)
    assert (asked.controller.rule, asked.controller.max_draft_tokens) == ("never", 4)


def test_another_engine_has_a_profile_of_its_own(policy, tmp_path, requests):
    longer = Settings.parse({"controller": {"max_draft_tokens": 7}})
    bare_head = Settings.parse({"drafter": {"quantize_output_head": False}})
    paths = {
        ensure_profile(policy, Settings()),
        ensure_profile(policy, Settings(), dtype="float32"),
        ensure_profile(policy, Settings(), is_compiled=False),
        ensure_profile(policy, longer),
        ensure_profile(policy, bare_head),
    }
    assert len(paths) == len(requests) == 5


def test_the_policy_s_name_and_place_do_not_matter(policy, tmp_path, requests):
    copy = tmp_path / "checkpoint_of_step_20"
    copy.mkdir()
    (copy / "config.json").write_text(json.dumps(SIZES))
    for model in (policy, str(copy)):
        ensure_profile(model, settings_for("never"))
    assert len(requests) == 1


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 0}'])
def test_a_damaged_file_in_the_cache_is_made_again(policy, requests, text):
    path = ensure_profile(policy, Settings())
    path.write_text(text)
    ensure_profile(policy, Settings())
    assert load_profile(path)
    assert len(requests) == 2


def test_a_profile_measured_elsewhere_is_not_used(policy, profile, monkeypatch):
    other = dataclasses.replace(profile, key=dataclasses.replace(profile.key, hardware="another"))
    monkeypatch.setattr(profiles, "_measure_in_own_process", lambda r: save_profile(other, Path(r.out)))
    with pytest.raises(ProfileError, match="hardware: 'another'"):
        ensure_profile(policy, Settings())


def test_a_cache_that_cannot_be_written_is_one_message(policy, tmp_path):
    (tmp_path / "efficient_rollout").write_text("")
    with pytest.raises(InputFileError, match="XDG_CACHE_HOME"):
        ensure_profile(policy, Settings())


def _want_it(policy: str, marks: Path) -> None:
    def slowly(request: CalibrationRequest) -> None:
        (marks / str(time.monotonic_ns())).write_text("")
        time.sleep(1.0)
        save_profile(dataclasses.replace(a100_profile(), key=profile_key(policy, "int8")), Path(request.out))

    profiles._measure_in_own_process = slowly  # of this process
    ensure_profile(policy, Settings())


def test_of_several_processes_one_measures(policy, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_want_it, args=(policy, marks)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60.0)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(marks.iterdir())) == 1


def test_a_policy_that_needs_no_profile_gets_none(policy):
    for settings in (settings_for("batch_threshold"), settings_for("never", enabled=False)):
        assert with_profile(policy, settings) == settings


def test_a_named_profile_is_checked_and_kept(policy, profile, tmp_path):
    path = tmp_path / "p.json"
    save_profile(profile, path)
    settings = Settings.parse({"controller": {"rule": "cost_model", "profile": str(path)}})
    assert with_profile(policy, settings) == settings
    path.write_text("{}")
    with pytest.raises(ProfileError, match="calibrate --model"):
        with_profile(policy, settings)


@pytest.mark.usefixtures("requests")
def test_a_policy_that_needs_one_gets_the_cached_one(policy, cache):
    made = ensure_profile(policy, Settings())
    assert made.parent == cache
    named = Settings.parse({"controller": {"rule": "cost_model", "profile": "unused"}})
    unnamed = named.model_copy(update={"controller": named.controller.model_copy(update={"profile": None})})
    assert with_profile(policy, unnamed).controller.profile == str(made)


def test_a_process_that_fails_says_why_and_leaves_its_output(policy, cache):
    """A directory that is no policy: the engine cannot start."""
    with pytest.raises(ProfileError, match=r"cannot read the policy.s configuration.*batch_threshold") as raised:
        ensure_profile(policy, Settings())
    assert "\n" not in str(raised.value)
    assert len(list(cache.glob("*.log"))) == 1
    assert not list(cache.glob("*.json"))


def test_points_fit_the_policy_and_reach_the_longest_draft():
    probe = probe_settings(4096, 7, dtype="float32", is_compiled=False)
    assert (probe.contexts, probe.lengths) == ((128, 512, 2048), (1, 2, 4, 7))
    assert (probe.max_points, probe.seconds) == (30, 60.0)
    small = probe_settings(512, 4, dtype="auto", is_compiled=True)
    assert (small.contexts, small.lengths) == ((128,), (1, 2, 4))
    assert probe_settings(64, 1, dtype="auto", is_compiled=True).lengths == (1,)


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
        "from efficient_rollout.engine.profiles import profile_key\n"
        "sys.stdout.write(json.dumps(dataclasses.asdict(profile_key(sys.argv[1], 'int8'))))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "5"}
    command = [sys.executable, "-c", script, policy]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert json.loads(result.stdout.splitlines()[-1]) == dataclasses.asdict(here)


def test_the_key_tells_how_many_cores_an_engine_gets(policy, monkeypatch):
    monkeypatch.setattr(profiles, "cores_of_machine", lambda: ([2, 5, 7], 1))
    assert ", 3 cores" in profile_key(policy, "int8").hardware
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    before = profile_key(policy, "int8").hardware
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-1")
    assert profile_key(policy, "int8").hardware == f"{before}, threads bound to 0-1"
