"""Where vLLM runs on a device that no engine has run on, every way in says so before an engine or Ray is started.

vLLM takes platforms from entry points. One that calls itself CUDA is enough to be asked, and refused, as on a GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from wheel_support import write_package

pytest.importorskip("vllm")

PLATFORM = """
from vllm.platforms.interface import Platform, PlatformEnum


def activate():
    return "another_device.Gpu"


class Gpu(Platform):
    _enum, device_name, device_type, dispatch_key = PlatformEnum.OOT, "gpu", "npu", "PrivateUse1"

    @classmethod
    def import_kernels(cls):
        # Nothing: the base class takes the CPU wheel's kernels for AVX512, which this processor may not have.
        return None
"""
NVIDIA = (
    PLATFORM.replace('PlatformEnum.OOT, "gpu", "npu", "PrivateUse1"', 'PlatformEnum.CUDA, "gpu", "cuda", "CUDA"')
    + """
    @classmethod
    def get_device_name(cls, device_id=0):
        return "Imaginary 100"

    @classmethod
    def get_device_capability(cls, device_id=0):
        from vllm.platforms.interface import DeviceCapability

        return DeviceCapability(9, 0)
"""
)
# The CPU wheel's modules that run engines do not load where the platform calls itself CUDA.
ON_NVIDIA = """
from efficient_rollout.config import Settings
from efficient_rollout.errors import EfficientRolloutError
from efficient_rollout.engine.engine_args import engine_args

for settings in (Settings().for_training(), Settings(gpu_certificate="required"), Settings(), Settings(enabled=False)):
    try:
        engine_args("any", settings)
    except EfficientRolloutError as error:
        print(error)
"""
# Of the measuring itself, a table takes the place: the machine is not there.
MEASURED_ON_NVIDIA = """
import dataclasses
import json
import sys
from pathlib import Path

from efficient_rollout import certificate
from efficient_rollout.config import Settings
from efficient_rollout.cost_model.calibration import calibrate_from_table
from efficient_rollout.cost_model.profile import save_profile
from efficient_rollout.cost_model.table import read_table
from efficient_rollout.engine import profiles
from efficient_rollout.engine.engine_args import engine_args
from efficient_rollout.engine.environment import this_machine

policy, table = sys.argv[1:]
certificate.Certificate(
    machine=this_machine(), outcome="passed", steps=("all",), failed_step=None, time="now", commit="none"
).write(Path("certificate.json"))


def measure(request):
    print("measured", json.dumps(dataclasses.asdict(request)))
    key = profiles.profile_key(policy, request.settings["drafter"]["scheme"])
    save_profile(calibrate_from_table(read_table(Path(table)), key=key), Path(request.out))


profiles._measure_in_own_process = measure
settings = {"drafter": {"scheme": "unquantized"}, "controller": {"rule": "cost_model"}}
settings["gpu_certificate_path"] = "certificate.json"
for _ in range(2):
    print("arguments", json.dumps(engine_args(policy, Settings.parse(settings), dtype="bfloat16")))
"""
UNCHECKED = "drafting has not been checked on Imaginary 100 with these versions"
ENTRY_POINTS = "[vllm.platform_plugins]\nanother_device = another_device:activate\n"
REFUSAL = "the installed vLLM runs on npu; engines of this package run on CPUs and on NVIDIA GPUs"
BY_HAND = """
from efficient_rollout.config import Settings
from efficient_rollout.errors import UnsupportedDeviceError
from efficient_rollout.engine.engine_args import engine_args
from efficient_rollout.measuring.starting import EngineLimits, start_engine

for start in (
    lambda: engine_args("any", Settings()),
    lambda: engine_args("any", Settings(enabled=False)),
    lambda: start_engine("any", EngineLimits(max_requests=1, max_context_tokens=8, kv_cache_tokens=8), None),
):
    try:
        start()
    except UnsupportedDeviceError as error:
        print(error)
"""


@pytest.fixture
def other_device(tmp_path) -> dict[str, str]:
    """Environment of a process whose vLLM finds that platform."""
    return environment_with(tmp_path, PLATFORM)


@pytest.fixture
def nvidia(tmp_path) -> dict[str, str]:
    """The same of one that calls itself CUDA, on a machine without a certificate."""
    return environment_with(tmp_path, NVIDIA) | {"XDG_CACHE_HOME": str(tmp_path / "cache")}


def environment_with(tmp_path: Path, platform: str) -> dict[str, str]:
    write_package(tmp_path, "another_device", platform, ENTRY_POINTS)
    return os.environ | {"PYTHONPATH": str(tmp_path)}


def run(environment: dict[str, str], *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=cwd)


@pytest.mark.slow
def test_no_engine_is_started_with_drafting_or_without(other_device):
    refusals = [line for line in run(other_device, "-c", BY_HAND).stdout.splitlines() if line.startswith(REFUSAL)]
    assert len(refusals) == 3


@pytest.mark.slow
def test_training_is_refused_in_one_line(other_device, tmp_path):
    pytest.importorskip("verl")
    run_directory = tmp_path / "run"
    command = ["-m", "efficient_rollout", "train", "size=nano", f"trainer.default_local_dir={run_directory}"]
    done = run(other_device, *command)
    assert done.returncode == 2, done.stderr
    assert f"efficient-rollout train: error: {REFUSAL}" in done.stderr
    assert not run_directory.exists()


@pytest.mark.slow
def test_the_doctor_says_so_and_offers_no_scheme(other_device):
    done = run(other_device, "-m", "efficient_rollout", "doctor", "--json")
    schemes = [row for row in json.loads(done.stdout) if row["section"] == "schemes"]
    assert [(row["state"], REFUSAL in row["advice"]) for row in schemes] == [("bad", True)]
    assert done.returncode == 1


def test_a_gpu_without_a_certificate_is_refused_with_the_command(nvidia):
    told = [line for line in run(nvidia, "-c", ON_NVIDIA).stdout.splitlines() if line.startswith(UNCHECKED)]
    assert len(told) == 2, "where one is required; else the worker warns, and without drafting an engine is stock"
    assert all("efficient-rollout gpu-check" in line and "gpu_certificate=warn" in line for line in told)


@pytest.mark.slow
def test_the_doctor_misses_the_certificate(nvidia):
    doctor = run(nvidia, "-m", "efficient_rollout", "doctor", "--json")
    assert any(row["state"] == "bad" and UNCHECKED in row["advice"] for row in json.loads(doctor.stdout))


def test_a_rule_that_needs_a_latency_profile_has_this_gpu_measured_once(nvidia, tmp_path, repository):
    from transformers import Qwen3Config

    from efficient_rollout.engine.engine_args import GPU_WORKER

    policy = tmp_path / "policy"
    Qwen3Config(
        hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=96, head_dim=64, architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(policy)  # fmt: skip
    (policy / "model.safetensors").touch()
    table = repository / "tests" / "data" / "sweep_a100_tp1_qwen257b.csv"
    done = run(nvidia, "-c", MEASURED_ON_NVIDIA, str(policy), str(table), cwd=tmp_path)
    lines = [line.partition(" ") for line in done.stdout.splitlines() if line.startswith(("measured ", "arguments "))]
    assert [kind for kind, _, _ in lines] == ["measured", "arguments", "arguments"], done.stderr
    request, *arguments = (json.loads(text) for _, _, text in lines)
    assert (request["dtype"], request["is_compiled"]) == ("bfloat16", True)
    assert request["settings"]["controller"]["rule"] == "never"
    assert request["settings"]["gpu_certificate_path"] == "certificate.json"
    assert arguments[0] == arguments[1]
    assert arguments[0]["worker_cls"] == GPU_WORKER
    assert arguments[0]["additional_config"]["efficient_rollout"]["controller"]["profile"] == request["out"]
