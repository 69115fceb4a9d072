"""`gpu-check --kernels` needs torch and Triton alone, and its steps see what is wrong."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="the CUDA path's tests need Triton: bash scripts/install.sh --triton")

import torch

from efficient_rollout.gpu_check import kernels
from efficient_rollout.gpu_check.stand import CheckFailed, Sizes, Stand
from efficient_rollout.gpu_check.steps import KERNEL_STEPS, QUICK_STEPS, command

TOY = {"large_weight": (256, 128), "layers": ((64, 128, 2), (32, 64, 1)), "draws": (2, 300)}
WITHOUT_VLLM = """
import json, os, sys
os.environ["TRITON_INTERPRET"] = "1"
sys.modules["vllm"] = None  # an import of it fails
from pathlib import Path
from efficient_rollout.gpu_check.stand import Sizes, Stand
from efficient_rollout.gpu_check.steps import KERNEL_STEPS, run
stand = Stand(device="cpu", folder=Path(sys.argv[1]), sizes=Sizes(**json.loads(sys.argv[2])))
print(json.dumps({step.name: run(stand, step.name, step.function) for step in KERNEL_STEPS}))
"""


def test_every_step_runs_without_vllm(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_VLLM, str(tmp_path), json.dumps(TOY)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["kernels"]["equal_digests"] == 44
    assert measured["kernels"]["copies"] == 4 * 7
    assert measured["sampling"]["equal_noise"] == 6 * 4096
    assert measured["sampling"]["draw_ms"] > 0
    for scheme in ("int4", "int8", "fp8"):
        row = measured["requantizing"][scheme]
        assert row["seconds"] > 0
        assert row["bandwidth_share"] > 0
        assert row["bytes"] > 2 * (2 * 64 * 128 + 32 * 64)
    assert {path.name for path in tmp_path.iterdir()} == {f"{step.name}.json" for step in KERNEL_STEPS}


def test_noise_of_another_position_is_seen(tmp_path, monkeypatch):
    noise_of = kernels.noise_of
    monkeypatch.setattr(
        kernels, "noise_of", lambda seeds, positions, width: noise_of(seeds, positions + (positions == 99), width)
    )
    with pytest.raises(CheckFailed, match="noise"):
        kernels.check_sampling(Stand(device="cpu", folder=tmp_path, sizes=Sizes(**TOY)))


def test_draws_follow_logits():
    logits = torch.zeros(2, 8)
    logits[0, 3] = logits[1, 5] = 100.0
    noise = kernels.noise_of(torch.tensor([1, 2]), torch.tensor([0, 0]), 8)
    assert kernels.drawn(logits, noise).tolist() == [3, 5]


def test_the_limits_keep_what_is_promised(tmp_path):
    assert sum(step.limit_s for step in QUICK_STEPS) <= 8 * 60
    assert sum(step.limit_s for step in KERNEL_STEPS) <= 3 * 60
    assert command(KERNEL_STEPS[0], tmp_path, ())[-1] == ""
