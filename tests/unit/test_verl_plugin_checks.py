"""What is wrong with a veRL job is said before Ray starts, and what Ray carried is said in our words."""

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("verl")

from efficient_rollout.cost_model.calibration import calibrate_from_table
from efficient_rollout.cost_model.profile import ProfileKey, save_profile
from efficient_rollout.cost_model.table import read_table
from efficient_rollout.engine.checks import check_build, check_device
from efficient_rollout.errors import (
    ConfigError,
    InputFileError,
    PluginInactiveError,
    ProfileError,
    UnsupportedDeviceError,
    UnsupportedModelError,
    ours_behind,
)
from efficient_rollout.verl_plugin.checks import check_job, explain, prepare_profile
from efficient_rollout.verl_plugin.compose import compose_config
from efficient_rollout.verl_plugin.prepare import prepare
from efficient_rollout.verl_plugin.settings import job_settings

SWEEP = Path(__file__).parent.parent / "data" / "sweep_a100_tp1_qwen257b.csv"
PROFILE = "actor_rollout_ref.rollout.custom.efficient_rollout.controller.profile"


@pytest.fixture
def job(tmp_path) -> list[str]:
    """Overrides of a job whose policy is only looked at, never loaded."""
    from transformers import Qwen3Config

    policy = tmp_path / "policy"
    Qwen3Config(hidden_size=64, num_hidden_layers=1, architectures=["Qwen3ForCausalLM"]).save_pretrained(policy)
    (policy / "model.safetensors").write_bytes(b"")
    return [
        "controller=cost_model",
        f"actor_rollout_ref.model.path={policy}",
        f"trainer.default_local_dir={tmp_path / 'run'}",
        f"data.train_files={tmp_path / 'none.parquet'}",
        f"data.val_files={tmp_path / 'none.parquet'}",
    ]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("enable_prompt_embeds=true", "enable_prompt_embeds=True"),
        ("pipeline_parallel_size=2", "pipeline_parallel_size=2"),
        ("hf_overrides={num_experts:8}", "num_experts=8"),
    ],
)
def test_options_for_vllm_beside_which_nothing_drafts_stop_the_job(job, option, said):
    unfit = f"+actor_rollout_ref.rollout.engine_kwargs.vllm.{option}"
    with pytest.raises(UnsupportedModelError, match=f"{said}.*enabled=false") as raised:
        check_job(compose_config([*job, unfit]))
    assert "\n" not in str(raised.value)


def test_a_missing_profile_stops_the_job_in_one_line(job, tmp_path):
    with pytest.raises(ProfileError) as raised:
        check_job(compose_config([*job, f"{PROFILE}={tmp_path / 'none.json'}"]))
    assert "\n" not in str(raised.value)
    assert f"efficient-rollout calibrate --model {tmp_path / 'policy'}" in str(raised.value)


def test_a_profile_of_another_machine_stops_the_job_and_is_named(job, tmp_path):
    path = tmp_path / "p.json"
    measured = calibrate_from_table(read_table(SWEEP), max_points=12)
    save_profile(dataclasses.replace(measured, key=ProfileKey(hardware="another", scheme="int8")), path)
    with pytest.raises(ProfileError, match=r"hardware: 'another' != .*make a new one") as raised:
        check_job(compose_config([*job, f"{PROFILE}={path}"]))
    assert "scheme" not in str(raised.value).split("make a new one")[0], "what fits is not complained of"


def test_a_relative_path_means_the_same_in_ray_s_processes(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose_config([*job, f"{PROFILE}=p.json"])
    prepare(config)
    settings = job_settings(config)
    assert settings.controller.profile == str(tmp_path / "p.json")


def test_an_error_of_ours_is_found_behind_what_ray_carried():
    ours = ConfigError("the fault")
    carried = RuntimeError("remote traceback")
    carried.cause = ours
    assert ours_behind(carried) is ours
    assert ours_behind(RuntimeError("something else")) is None


@pytest.fixture
def head_of_a_gpu_cluster(monkeypatch) -> None:
    """A build for CUDA, where vLLM finds no GPU."""
    import torch
    from vllm import platforms
    from vllm.platforms.interface import UnspecifiedPlatform

    monkeypatch.setattr(platforms, "_current_platform", UnspecifiedPlatform())
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.usefixtures("head_of_a_gpu_cluster")
def test_a_driver_without_a_gpu_checks_the_job_and_not_the_device(job):
    check_build()
    with pytest.raises(UnsupportedDeviceError):
        check_device()
    with pytest.raises(InputFileError, match=r"data.train_files: .*none.parquet"):
        check_job(compose_config([*job, "trainer.device=cuda"]))


@pytest.mark.usefixtures("head_of_a_gpu_cluster")
def test_a_driver_without_a_gpu_measures_no_profile(job, monkeypatch):
    monkeypatch.setattr("efficient_rollout.training_job.with_profile", lambda *_, **__: pytest.fail("measured"))
    prepare_profile(compose_config(job))


def test_a_build_for_no_device_is_refused_on_a_driver_too(head_of_a_gpu_cluster, monkeypatch):
    monkeypatch.setattr("torch.version.cuda", None)
    with pytest.raises(UnsupportedDeviceError, match="a device that it does not find here"):
        check_build()


@pytest.mark.parametrize(
    "words",
    [
        "ValueError: Unknown rollout mode: efficient_vllm. Available: ['vllm']",
        "AssertionError: Rollout efficient_vllm with mode async not found",
    ],
)
def test_verl_without_the_plugin_is_called_what_it_is(words):
    assert isinstance(explain(RuntimeError(words)), PluginInactiveError)
    assert explain(RuntimeError("something else")) is None


def test_a_file_of_verls_own_reader_is_left_to_it(job, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('\n{"x": 1}\n{"prompt": []}\n', encoding="utf-8")
    for file, at_fault in ((rows, "data.val_files"), (tmp_path / "none.jsonl", "data.train_files")):
        with pytest.raises(InputFileError, match=f"{at_fault}: .* does not exist"):
            check_job(compose_config([*job, f"data.train_files={file}"]))
