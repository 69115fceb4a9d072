"""Bad input: one clear error that names the fault and the way out, before Ray starts, exit code not 0."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl")

from verl_support import STOCK

from efficient_rollout.tasks.dataset import write_dataset
from efficient_rollout.tasks.tokenizer import build_tokenizer

pytestmark = pytest.mark.verl

SETTINGS = "actor_rollout_ref.rollout.custom.efficient_rollout"
MODEL = "actor_rollout_ref.model.path"
SAMPLER = "trainer.v1.sampler.custom_sampler"

# Many cases in one process: importing veRL and vLLM takes longer than all of them.
MANY_RUNS = """
import contextlib, io, json, sys
from efficient_rollout.verl_plugin import main
import ray
main._run = lambda *args: None  # a case that passes every check must not start a job
results = {}
for name, overrides in json.loads(sys.argv[1]).items():
    words = io.StringIO()
    with contextlib.redirect_stderr(words), contextlib.redirect_stdout(io.StringIO()):
        exit_code = main.train(overrides)
    results[name] = {"exit_code": exit_code, "stderr": words.getvalue(), "ray": ray.is_initialized()}
print("RESULTS " + json.dumps(results))
"""

# Name -> overrides (with {good}, {moe}, ... directories filled in), and words the message must hold.
CASES: dict[str, tuple[list[str], list[str]]] = {
    "unknown setting": ([f"+{SETTINGS}.drafter.bits=3"], ["drafter.bits", "unknown setting", "scheme"]),
    "out of range": ([f"+{SETTINGS}.controller.max_draft_tokens=99"], ["max_draft_tokens", "16", "99"]),
    "unknown scheme": ([f"{SETTINGS}.drafter.scheme=int3"], ["scheme", "int8", "int3"]),
    "unknown veRL option": (["trainer.no_such_option=1"], ["no_such_option"]),
    "unknown group": (["drafter=int5"], ["drafter=int5", "int4", "int8"]),
    "missing model": ([MODEL + "={tmp}/nothing"], ["nothing", "config.json"]),
    "model without weights": ([MODEL + "={empty}"], ["no weights"]),
    "unreadable model": ([MODEL + "={broken}"], ["broken"]),
    "mixture of experts": ([MODEL + "={moe}"], ["mixture of experts", "enabled=false"]),
    "multimodal": ([MODEL + "={multimodal}"], ["multimodal"]),
    "already quantized": ([MODEL + "={quantized}"], ["already quantized"]),
    "missing parquet": (["data.train_files={tmp}/no.parquet"], ["data.train_files", "no.parquet", "does not exist"]),
    "unreadable parquet": (["data.val_files={tmp}/bad.parquet"], ["data.val_files", "not readable as parquet"]),
    "wrong column": (["data.prompt_key=question"], ["'question'", "data.prompt_key"]),
    "half a data set": (["data.val_files=null"], ["data.val_files must be set"]),
    "missing reward": (["reward.custom_reward_function.path={tmp}/no.py"], ["no.py", "does not exist"]),
    "unreadable reward": (["reward.custom_reward_function.path={tmp}/bad.py"], ["bad.py", "not readable as Python"]),
    "reward without function": (["reward.custom_reward_function.path={tmp}/other.py"], ["compute_score"]),
    "another rollout": (["actor_rollout_ref.rollout.name=vllm"], ["efficient_vllm", "enabled=false"]),
    "group filtering": (
        ["algorithm.filter_groups.enable=true", f"{SAMPLER}.path=pkg://efficient_rollout.verl_plugin.replay_buffer"],
        ["custom_sampler.path=null"],
    ),
    "LoRA": (["actor_rollout_ref.model.lora_rank=8"], ["lora_rank"]),
    "veRL's own check": (["actor_rollout_ref.actor.use_dynamic_bsz=false"], ["veRL refuses", "micro_batch_size"]),
}


def write_model(directory: Path, *, weights: bool = True, **changes) -> Path:
    from transformers import Qwen3Config

    Qwen3Config(
        vocab_size=128, hidden_size=64, num_hidden_layers=1, architectures=["Qwen3ForCausalLM"]
    ).save_pretrained(directory)
    build_tokenizer(128).save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    if weights:
        (directory / "model.safetensors").touch()
    return directory


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    tmp = tmp_path_factory.mktemp("bad_input")
    places = {
        "tmp": tmp,
        "good": write_model(tmp / "good"),
        "empty": write_model(tmp / "empty", weights=False),
        "moe": write_model(tmp / "moe", num_experts=8),
        "multimodal": write_model(tmp / "multimodal", vision_config={"hidden_size": 8}),
        "quantized": write_model(tmp / "quantized", quantization_config={"quant_method": "fp8"}),
        "broken": write_model(tmp / "broken"),
    }
    (tmp / "broken" / "config.json").write_text("{")
    (tmp / "bad.parquet").write_text("not parquet")
    (tmp / "bad.py").write_text("def compute_score(:\n")
    (tmp / "other.py").write_text("def another(): ...\n")
    train_file, validation_file = write_dataset(tmp, size="nano", num_train=64, num_validation=8)
    common = [
        f"trainer.default_local_dir={tmp}/run",
        f"{MODEL}={places['good']}",
        f"data.train_files={train_file}",
        f"data.val_files={validation_file}",
    ]
    runs = {
        name: [*common, *(override.format(**places) for override in overrides)]
        for name, (overrides, _) in CASES.items()
    }
    result = subprocess.run(
        [sys.executable, "-c", MANY_RUNS, json.dumps(runs)], capture_output=True, text=True, timeout=300, check=False
    )
    marked = [line for line in result.stdout.splitlines() if line.startswith("RESULTS ")]
    assert marked, result.stderr[-4000:]
    return json.loads(marked[0].removeprefix("RESULTS "))


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named_before_ray_starts(name, results):
    told = results[name]
    assert told["exit_code"] == 2, told["stderr"]
    assert not told["ray"]
    (message,) = [block for block in told["stderr"].split("efficient-rollout train: ") if block.startswith("error: ")]
    assert len(message.splitlines()) <= 5
    assert "Traceback" not in told["stderr"]
    for words in CASES[name][1]:
        assert words in message, message


def run_cli(environment: dict[str, str], *overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "efficient_rollout", "train", *overrides],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["VERL_USE_EXTERNAL_PLUGINS", "VLLM_PLUGINS"])
def test_a_plugin_kept_from_loading_is_named(variable, tmp_path):
    result = run_cli({variable: "another"}, f"trainer.default_local_dir={tmp_path}")
    assert result.returncode == 2
    assert variable in result.stderr
    assert "efficient_rollout" in result.stderr


@pytest.mark.slow
def test_a_plugin_missing_in_the_jobs_processes_stops_the_job(tmp_path):
    """The driver has it, the processes Ray starts do not."""
    result = run_cli(
        {},
        f"trainer.default_local_dir={tmp_path}",
        "trainer.use_v1=false",
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_PLUGINS=none",
    )
    assert result.returncode == 2, result.stderr[-3000:]
    assert "did not load in the processes of the job" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_under_verls_own_entry_point_it_is_named_before_ray_starts_too(tmp_path):
    train_file, validation_file = write_dataset(tmp_path, size="nano", num_train=64, num_validation=8)
    result = subprocess.run(
        [
            *(sys.executable, *STOCK, f"trainer.default_local_dir={tmp_path}"),
            *(f"{MODEL}={write_model(tmp_path / 'moe', num_experts=8)}", f"data.train_files={train_file}"),
            f"data.val_files={validation_file}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    assert "UnsupportedModelError" in result.stderr, result.stderr[-3000:]
    assert "mixture of experts" in result.stderr
    assert "ray init kwargs" not in result.stdout, "veRL prints them as it starts Ray"
