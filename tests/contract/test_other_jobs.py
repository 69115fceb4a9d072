"""A veRL job that does not ask for this package does not feel it: a bare `import verl`, beside which it is installed.

torch takes extensions of other devices from entry points when it is imported, and veRL imports modules of the user's
before plugins. The first is enough to be taken for a build with CUDA, the second to bring a veRL that has drifted.
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from wheel_support import write_package

pytest.importorskip("verl")

CUDA_BUILD = "import torch\n\n\ndef activate():\n    torch.version.cuda = '13.0'\n"
DRIFTED = """
import verl.utils.distributed
import verl.utils.tracking


def another_version(*args, **kwargs):
    return None


verl.utils.distributed.initialize_global_process_group_ray = another_version
verl.utils.tracking.Tracking.__init__ = another_version
"""
ASK = """
import importlib.metadata, json, os, sys

def version_of_vllm():
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return None

before, finders = version_of_vllm(), list(sys.meta_path)
import verl
platform = verl.plugin.platform.platform_manager
told = {
    "vllm_unchanged": version_of_vllm() == before,
    "finders_of_ours": [str(finder) for finder in sys.meta_path if finder not in finders and "rollout" in str(finder)],
    "engine_device": os.environ.get("VERL_ENGINE_DEVICE"),
    "platform_is_open": platform._current_platform is None,
    "vllm_imported": "vllm" in sys.modules,
}
from verl.utils.distributed import initialize_global_process_group_ray
from verl.utils.model import load_valuehead_model
from verl.utils.tracking import Tracking
from verl.workers.rollout.replica import RolloutReplicaRegistry
patched = [initialize_global_process_group_ray, load_valuehead_model, Tracking.__init__]
told["patched"] = [function.__name__ for function in patched if hasattr(function, "__efficient_rollout_patch__")]
told["names"] = sorted(RolloutReplicaRegistry._registry)
told["platform"] = platform.get_platform().device_name
"""
LOAD = """
try:
    told["replica"] = RolloutReplicaRegistry.get("efficient_vllm").__name__
except Exception as error:
    told["replica"] = f"{type(error).__name__}: {error}"
told["logger"] = hasattr(Tracking.__init__, "__efficient_rollout_patch__")
"""
REPORT = "print(json.dumps(told))\n"


def torch_is_for_an_accelerator() -> bool:
    torch = pytest.importorskip("torch")
    return torch.version.cuda is not None or torch.version.hip is not None


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Of a process that finds what a test writes to its folder, and no variable of veRL's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("VERL_")} | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    }


@pytest.fixture
def on_a_cpu(environment) -> dict[str, str]:
    """What a job on a CPU runs with: veRL has to be told only where torch was built for an accelerator."""
    return environment | ({"VERL_PLATFORM": "cpu"} if torch_is_for_an_accelerator() else {})


@pytest.fixture
def cuda_build(tmp_path, environment) -> dict[str, str]:
    entry_points = "[torch.backends]\nanother_device = another_device:activate\n"
    write_package(tmp_path, "another_device", CUDA_BUILD, entry_points)
    return environment


@pytest.fixture
def drifted(tmp_path) -> dict[str, str]:
    (tmp_path / "another_verl.py").write_text(DRIFTED)
    return {"VERL_USE_EXTERNAL_MODULES": "another_verl"}


def ask(environment: dict[str, str], script: str = ASK + REPORT) -> tuple[dict[str, Any], str]:
    """What the process told, and what it logged."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr + done.stdout


def test_only_the_registries_know_of_us_where_torch_has_an_accelerator(cuda_build):
    told, logged = ask(cuda_build)
    assert told == {
        "vllm_unchanged": True, "finders_of_ours": [], "engine_device": None, "platform_is_open": True,
        "vllm_imported": False, "patched": [], "platform": "cuda",
        "names": ["efficient_vllm", "sglang", "trtllm", "vllm"],
    }  # fmt: skip
    assert "efficient_rollout" not in logged


@pytest.mark.slow
def test_a_drifted_verl_is_no_error_in_another_s_job(cuda_build, drifted):
    told, logged = ask(cuda_build | drifted)
    assert told["patched"] == []
    assert "efficient_vllm" in told["names"]
    assert "efficient_rollout" not in logged


@pytest.mark.slow
def test_a_drifted_verl_stops_a_job_of_ours_where_its_engines_are_started(on_a_cpu, drifted):
    told, logged = ask(on_a_cpu | drifted, ASK + LOAD + REPORT)
    assert "efficient_vllm" in told["names"]
    assert told["patched"] == ["load_valuehead_model"], "others' jobs on a CPU keep what can be had"
    assert "ERROR" not in logged
    assert told["replica"].startswith("PatchDriftError: patch 'gloo-only-process-group' does not know this version")


@pytest.mark.slow
def test_the_logger_is_there_once_a_job_of_ours_starts_its_engines(on_a_cpu):
    pytest.importorskip("vllm")
    told, _ = ask(on_a_cpu, ASK + LOAD + REPORT)
    assert told["replica"] == "EfficientReplica"
    assert told["logger"]


@pytest.mark.slow
def test_a_cpu_gets_what_stock_verl_lacks_there(environment):
    if torch_is_for_an_accelerator():
        pytest.skip("torch was built for an accelerator")
    told, _ = ask(environment)
    assert told["platform_is_open"], "platforms of other plugins may come after ours"
    assert told["platform"] == "cpu"
    assert told["engine_device"] == "cuda"
    assert told["patched"] == ["initialize_global_process_group_ray", "load_valuehead_model"]
    override, _ = ask(environment | {"VERL_PLATFORM": "nvidia"})
    assert override["engine_device"] is None
    assert override["patched"] == []
