"""An engine of two workers in Ray's actors, as frameworks that place engines through Ray start it, on a CPU.

vLLM gives Ray's actors GPUs alone. A platform of this test's own has the CPU's engines, and says that it has GPUs;
Ray's are logical.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import engine_support
import pytest
from wheel_support import write_package

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.several_cores]

PLATFORM = """
from vllm.platforms.cpu import CpuPlatform


def activate():
    return "cpu_of_ray.CpuOfRay"


class CpuOfRay(CpuPlatform):
    ray_device_key = "GPU"

    @classmethod
    def device_control_id_to_physical_device_id(cls, device_id):
        return int(device_id)
"""
PROGRAM = """
import json
import os
import sys

import ray
from vllm import LLM, SamplingParams

from efficient_rollout.config import Settings
from efficient_rollout.engine.engine_args import RAY_EXECUTOR, engine_args

if __name__ == "__main__":
    if sys.argv[2] == "ray":
        context = ray.init(num_gpus=2, num_cpus=4, include_dashboard=False, object_store_memory=256 << 20)
        os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]  # as OpenRLHF's actor does
    settings = Settings.parse({
        "drafter": {"scheme": "int8"}, "controller": {"rule": "always", "max_draft_tokens": 3}
    })
    options = engine_args(sys.argv[1], settings, dtype="float32", tensor_parallel_size=2)
    if sys.argv[2] == "ray":
        options["distributed_executor_backend"] = RAY_EXECUTOR
    engine = LLM(
        sys.argv[1], dtype="float32", tensor_parallel_size=2, enforce_eager=True, max_model_len=128,
        kv_cache_memory_bytes=64 << 20, skip_tokenizer_init=True, **options,
    )
    prompts = [{"prompt_token_ids": [5 + number + place for place in range(9)]} for number in range(3)]
    sampling = [SamplingParams(temperature=t, seed=7, max_tokens=24, ignore_eos=True, detokenize=False, min_p=0.01)
                for t in (0.0, 1.0, 0.7)]
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    statistics = engine.collective_rpc("take_rollout_stats")
    statuses = engine.collective_rpc("plugin_status")
    print(json.dumps({
        "tokens": [list(output.outputs[0].token_ids) for output in outputs], "statistics": statistics[0],
        "faults": [status["drafter_fault"] for status in statuses],
        "processes": len({status["process_id"] for status in statuses}),
    }), flush=True)
    engine.llm_engine.engine_core.shutdown()  # before Ray, which its workers are actors of
    ray.shutdown()
"""


def run(folder: Path, policy: str, executor: str) -> dict[str, Any]:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(folder / "program.py"), policy, executor]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"tokens"')]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(lines[0])


def test_two_workers_in_ray_draft_as_two_processes_do(tmp_path):
    policy = engine_support.random_policy(tmp_path / "policy")
    write_package(tmp_path, "cpu_of_ray", PLATFORM, "[vllm.platform_plugins]\ncpu_of_ray = cpu_of_ray:activate\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    in_ray, in_processes = (run(tmp_path, policy, executor) for executor in ("ray", "processes"))
    assert in_ray["tokens"] == in_processes["tokens"]
    assert in_ray["faults"] == [None, None]
    assert in_ray["processes"] == 2
    accepted = in_ray["statistics"]["accepted_per_position"]
    assert accepted == in_processes["statistics"]["accepted_per_position"]
    assert sum(accepted) > 0
