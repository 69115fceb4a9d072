"""What is wrong with an OpenRLHF job is said before Ray starts; its own parser reads the arguments."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF has an environment of its own: bash scripts/install.sh --openrlhf")

from efficient_rollout.errors import ConfigError, EfficientRolloutError, InputFileError, PatchDriftError
from efficient_rollout.openrlhf_plugin import stand_ins  # first: what this machine lacks

# isort: split

from efficient_rollout.openrlhf_plugin import seams
from efficient_rollout.openrlhf_plugin.checks import prepare_job
from efficient_rollout.openrlhf_plugin.main import ENTRY_POINT, start_ray_on_cpu
from efficient_rollout.openrlhf_plugin.options import parse_options
from efficient_rollout.tasks import reward_func
from efficient_rollout.tasks.dataset import write_dataset
from efficient_rollout.training_job import check_versions

# OpenRLHF's train_prorlv2_math_hybrid_engine.sh in the options of 0.11, its paths and sizes left to the test.
PRORL_V2 = """
    --ref.num_nodes 1 --ref.num_gpus_per_node 1 --actor.num_nodes 1 --actor.num_gpus_per_node 1
    --vllm.num_engines 1 --vllm.tensor_parallel_size 1 --train.colocate_all --vllm.gpu_memory_utilization 0.75
    --algo.kl.init_coef 1e-4 --algo.advantage.gamma 1.0 --algo.kl.use_loss --algo.kl.estimator k2
    --algo.advantage.estimator reinforce_baseline --algo.dynamic_filtering_enable --algo.dynamic_filtering_range 0 1
    --actor.eps_clip_low_high 0.2 0.27 --ckpt.save_steps 5 --ckpt.save_hf --train.batch_size 16 --rollout.batch_size 8
    --rollout.n_samples_per_prompt 16 --train.dynamic_batch_enable --train.num_episodes 1 --data.max_len 96
    --rollout.max_new_tokens 64 --ds.zero_stage 2 --ds.param_dtype bf16 --actor.adam.lr 1e-6 --data.input_key prompt
    --data.label_key label --eval.steps 5 --eval.temperature 1.0 --eval.n_samples_per_prompt 4
    --data.apply_chat_template --actor.gradient_checkpointing_enable --ds.packing_samples --vllm.sync_backend nccl
    --vllm.enforce_eager
    --vllm.enable_sleep --ds.enable_sleep --algo.advantage.is_correction_level token
    --algo.advantage.is_correction_mode mask --algo.advantage.is_correction_threshold 0.5 5.0
    --train.max_tokens_per_gpu 32768 --reward.stop_properly_penalty_coef 0.0
"""


class _EndOfParsing(Exception):
    """In the place of everything after OpenRLHF's own checks."""


@pytest.fixture
def job(tmp_path) -> dict[str, str]:
    """Arguments of a job whose policy is only looked at, never loaded."""
    from transformers import Qwen3Config

    policy = tmp_path / "policy"
    Qwen3Config(hidden_size=64, num_hidden_layers=1, architectures=["Qwen3ForCausalLM"]).save_pretrained(policy)
    (policy / "model.safetensors").write_bytes(b"")
    train_file, validation_file = write_dataset(tmp_path, size="nano", num_train=8, num_validation=8)
    return {
        "--actor.model_name_or_path": str(policy),
        "--reward.remote_url": str(reward_func.__file__),
        "--data.prompt_dataset": str(train_file),
        "--eval.dataset": str(validation_file),
        "--ckpt.output_dir": str(tmp_path / "run"),
    }


@pytest.fixture
def prepare(job, monkeypatch) -> Callable[..., Any]:
    """OpenRLHF's entry point up to where it starts Ray, with this package's checks in the midst."""

    def prepare(*theirs: str, ours: tuple[str, ...] = ()) -> Any:
        import openrlhf.utils.config
        import ray

        options = parse_options([*ours, "--"])
        stock, seen = openrlhf.utils.config.hierarchize, []

        def hierarchize(flat: Any) -> Any:
            seen.append(prepare_job(stock(flat), options))
            return seen[0]

        def no_ray(**_given: Any) -> None:
            raise _EndOfParsing

        arguments = [part for pair in job.items() for part in pair]
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", [ENTRY_POINT, *PRORL_V2.split(), *arguments, *theirs])
            patched.setattr(openrlhf.utils.config, "hierarchize", hierarchize)
            patched.setattr(ray, "init", no_ray)
            with pytest.raises(_EndOfParsing):
                runpy.run_module(ENTRY_POINT, run_name="__main__", alter_sys=True)
        return seen[0]

    return prepare


def test_a_stock_script_is_taken_with_what_needs_a_gpu_changed(prepare, caplog):
    args = prepare()
    assert args.ds.attn_implementation == "sdpa"
    changed = (args.ds.packing_samples, args.train.dynamic_batch_enable, args.vllm.enable_sleep, args.ds.enable_sleep)
    assert not any(changed)
    assert args.vllm.sync_backend == "gloo"
    said = [record.getMessage() for record in caplog.records if "without a GPU" in record.getMessage()]
    changed = (
        "attn_implementation",
        "packing_samples",
        "ds.enable_sleep",
        "dynamic_batch",
        "vllm.enable_sleep",
        "gloo",
    )
    assert len(said) == len(changed)
    assert all(any(name in line for line in said) for name in changed)
    assert args.algo.advantage.is_correction_threshold == [0.5, 5.0]


def test_the_run_directory_gets_the_configuration_without_secrets(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["efficient-rollout", "openrlhf", "--", "--logger.wandb.key", "a-secret"])
    prepare("--logger.wandb.key", "a-secret")
    written = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    assert "estimator: reinforce_baseline" in written["config.yaml"]
    assert "--logger.wandb.key" in written["provenance.json"]
    assert [name for name, text in written.items() if "a-secret" in text] == []


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ("--vllm.tensor_parallel_size 2", "--vllm.tensor_parallel_size is 2"),
        ("--vllm.num_engines 0", "--vllm.num_engines is 0"),
        ("--ds.lora.rank 8", "self-drafting does not work together with --ds.lora.rank"),
        ("--ds.zero_stage 3 --ds.load_in_4bit", "never run: --ds.load_in_4bit, --ds.zero_stage 3"),
        ("--actor.num_gpus_per_node 2", "--actor.num_nodes, --actor.num_gpus_per_node"),
        ("--actor.model_name_or_path /none", "/none"),
        ("--reward.remote_url /none.py", "--reward.remote_url: /none.py does not exist"),
        ("--reward.remote_url nonsense", "nonsense is no address"),
        ("--train.agent_func_path /none.py", "--train.agent_func_path: /none.py does not exist"),
        ("--data.prompt_dataset /none.jsonl", "--data.prompt_dataset: /none.jsonl does not exist"),
        ("--eval.dataset ./none", "--eval.dataset: none does not exist"),
    ],
)
def test_what_cannot_work_is_one_message(prepare, theirs, message):
    with pytest.raises(EfficientRolloutError) as raised:
        prepare(*theirs.split())
    assert message in str(raised.value)


def test_the_baseline_takes_what_only_drafting_cannot(prepare):
    assert prepare("--ds.lora.rank", "8", ours=("--efficient_rollout.enabled=false",)).ds.lora.rank == 8


def test_a_reward_file_without_the_function_is_named(prepare, tmp_path):
    file = tmp_path / "reward.py"
    file.write_text("def score(): ...")
    with pytest.raises(InputFileError, match="defines no 'reward_func'"):
        prepare("--reward.remote_url", str(file))


def test_a_data_file_without_the_key_is_named(prepare, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"input": "1+1"}\n')
    with pytest.raises(InputFileError, match=r"has no 'prompt' .it has input.; set --data.input_key"):
        prepare("--data.prompt_dataset", str(file))


def test_a_policy_must_be_named(prepare, job):
    del job["--actor.model_name_or_path"]
    with pytest.raises(ConfigError, match=r"--actor.model_name_or_path is not set"):
        prepare()


def test_openrlhfs_own_refusal_ends_the_command_before_ray(job, tmp_path):
    arguments = [part for pair in job.items() for part in pair]
    command = [sys.executable, "-m", "efficient_rollout.openrlhf_plugin", "--", *PRORL_V2.split(), *arguments]
    ended = subprocess.run(
        [*command, "--rollout.n_samples_per_prompt", "1"], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last.endswith("OpenRLHF refuses its arguments: reinforce_baseline requires n_samples_per_prompt > 1")
    assert "Traceback" not in ended.stderr
    assert "local Ray instance" not in ended.stderr


@pytest.mark.parametrize("runs_already", [False, True])
def test_a_cluster_that_runs_is_joined_with_its_own_slots(prepare, runs_already):
    calls = []

    def init(**given: Any) -> str:
        calls.append(given)
        if runs_already and "num_gpus" in given:
            # Ray's own words; a cluster of another job is no cluster to join, so Ray itself has to look for one.
            raise ValueError("When connecting to an existing cluster, num_cpus and num_gpus must not be provided.")
        return "started"

    assert start_ray_on_cpu(init, {"runtime_env": {"env_vars": {"A": "1"}}}, prepare()) == "started"
    variables = calls[-1]["runtime_env"]["env_vars"]
    assert (variables["A"], variables["DS_ACCELERATOR"]) == ("1", "cpu")
    # An actor, a reference, an engine; the reward is a file, and there is no critic.
    assert calls[0]["num_gpus"] == 3
    assert ("num_gpus" in calls[-1]) is not runs_already


def test_code_that_has_drifted_is_named():
    seams.check_seams()
    owner, names = next(iter(seams.SHA256.items()))
    changed = next(iter(names))
    others = {owner: names | {changed: "0" * 64}, "openrlhf.utils.config:no": {"ne": "0" * 64}}
    with pytest.raises(PatchDriftError) as raised:
        seams.check_seams(seams.SHA256 | others)
    assert f"at {owner}{changed}, openrlhf.utils.config:none: install" in str(raised.value)


def test_every_patch_is_documented(repository):
    text = (repository / "docs" / "openrlhf.md").read_text(encoding="utf-8")
    assert [patch.name for patch in stand_ins.PATCHES if f"| `{patch.name}` |" not in text] == []
    assert text.count("| `openrlhf-") == len(stand_ins.PATCHES)


@pytest.fixture
def head_of_a_gpu_cluster(monkeypatch) -> None:
    """A build for CUDA, where vLLM finds no GPU."""
    import torch
    from vllm import platforms
    from vllm.platforms.interface import UnspecifiedPlatform

    monkeypatch.setattr(platforms, "_current_platform", UnspecifiedPlatform())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("efficient_rollout.training_job.with_profile", lambda *_, **__: pytest.fail("CUDA"))


@pytest.mark.usefixtures("head_of_a_gpu_cluster")
def test_on_gpus_a_stock_script_is_taken_as_it_is(prepare, caplog, monkeypatch):
    monkeypatch.setattr("efficient_rollout.openrlhf_plugin.stand_ins.has_flash_attention", lambda: True)
    check_versions("openrlhf")
    args = prepare("--vllm.tensor_parallel_size", "2", "--actor.num_gpus_per_node", "8", "--vllm.num_engines", "4")
    assert [record for record in caplog.records if "without a GPU" in record.getMessage()] == []
    kept = (args.ds.attn_implementation, args.vllm.sync_backend, args.vllm.tensor_parallel_size)
    assert kept == ("flash_attention_2", "nccl", 2)
    assert all((args.ds.packing_samples, args.train.dynamic_batch_enable, args.vllm.enable_sleep, args.ds.enable_sleep))


WITHOUT_FLASH = """
from efficient_rollout.openrlhf_plugin import stand_ins

assert not stand_ins.has_flash_attention()
import flash_attn.bert_padding

assert not stand_ins.has_flash_attention()
"""


def test_names_that_stand_in_for_flash_attn_are_not_taken_for_it():
    subprocess.run([sys.executable, "-c", WITHOUT_FLASH], check=True)


@pytest.mark.usefixtures("head_of_a_gpu_cluster")
@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ("", (), "flash-attn is not installed"),
        ("--ds.param_dtype fp16", (), "--ds.param_dtype is fp16: OpenRLHF's engines are in bfloat16"),
        ("", ("--cpu.kv_cache_bytes=9",), "--cpu.kv_cache_bytes is for a machine without a GPU"),
        ("", ("--efficient_rollout.verify_kernel=native",), "verify_kernel=native is for engines on a CPU"),
        ("--vllm.tensor_parallel_size 3", ("--efficient_rollout.enabled=false",), "tensor_parallel_size"),
    ],
)
def test_what_cannot_work_on_gpus_is_one_message(prepare, theirs, ours, message, monkeypatch):
    has_flash = "flash-attn" not in message
    monkeypatch.setattr("efficient_rollout.openrlhf_plugin.stand_ins.has_flash_attention", lambda: has_flash)
    with pytest.raises(EfficientRolloutError) as raised:
        prepare(*theirs.split(), ours=ours)
    assert message in str(raised.value)


HEAD = """
import sys

import ray
import torch
from vllm import platforms
from vllm.platforms.interface import UnspecifiedPlatform

platforms._current_platform, torch.version.cuda = UnspecifiedPlatform(), "13.0"
from efficient_rollout.errors import ConfigError
from efficient_rollout.openrlhf_plugin.main import launch


def init(**given):
    from openrlhf.trainer.ray import ppo_actor, vllm_engine

    door = vllm_engine.RolloutRayActor
    policy = ppo_actor.PolicyModelActor.__ray_metadata__.modified_class.__name__
    raise ConfigError(f"{sorted(given)}, {door.actor_class.worker_extension}, {dict(door.vllm_arguments)}, {policy}")


ray.init = init
raise SystemExit(launch(sys.argv[1:]))
"""


def test_a_driver_without_a_gpu_starts_ray_as_stock_does(job):
    """With this package's engines and OpenRLHF's trainers, whose processes get nothing of a CPU's stand-ins."""
    theirs = [*PRORL_V2.split(), *(part for pair in job.items() for part in pair)]
    theirs = [part for part in theirs if part not in ("--ds.packing_samples", "--train.dynamic_batch_enable")]
    command = [sys.executable, "-c", HEAD, "--", *theirs, "--ds.attn_implementation", "sdpa"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    extension = "efficient_rollout.openrlhf_plugin.worker_extension.EfficientWorkerWrap"
    assert f"error: ['runtime_env'], {extension}, {{}}, Policy" in ended.stderr, ended.stderr[-3000:]
    assert ended.returncode == 2
