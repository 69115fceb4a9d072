"""Jobs of `efficient-rollout openrlhf`, for the tests."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_rollout.tasks import reward_func
from efficient_rollout.tasks.dataset import write_dataset
from efficient_rollout.tasks.policy import ensure_policy

TIMEOUT_SECONDS = 600
OURS = ("-m", "efficient_rollout", "openrlhf")
DRAFTING = ("--efficient_rollout.controller.rule=always", "--efficient_rollout.drafter.scheme=int8")
NUM_ENGINES = "--vllm.num_engines"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        directory: Its `--ckpt.output_dir`.
        steps: Records of its metrics file that trained, by step.
        evaluations: Records of an evaluation, by step.
        log: Everything printed.
    """

    directory: Path
    steps: dict[int, dict[str, Any]]
    evaluations: dict[int, dict[str, Any]]
    log: str


def arguments(directory: Path, theirs: Sequence[str] = (), *, num_prompts: int = 24) -> list[str]:
    """OpenRLHF's arguments for GRPO on the embedded task, a step for each 8 prompts; the later of two wins."""
    train_file, validation_file = write_dataset(directory, size="nano", num_train=num_prompts, num_validation=8)
    own = f"""
        --actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1 --critic.num_gpus_per_node 1 --reward.num_gpus_per_node 1
        --vllm.num_engines 1 --vllm.enforce_eager
        --algo.advantage.estimator group_norm --algo.kl.init_coef 0
        --algo.advantage.is_correction_level token --algo.advantage.is_correction_threshold 0 1000000000
        --data.input_key prompt --data.label_key label --data.apply_chat_template
        --data.max_len 128 --rollout.max_new_tokens 64 --data.max_samples {num_prompts}
        --rollout.batch_size 8 --rollout.n_samples_per_prompt 4 --rollout.micro_batch_size 8
        --train.batch_size 32 --train.micro_batch_size 8 --actor.adam.lr 1e-3 --actor.lr_scheduler constant
    """.split()
    paths = {
        "--actor.model_name_or_path": ensure_policy("nano"),
        "--reward.remote_url": reward_func.__file__,
        "--data.prompt_dataset": train_file,
        "--ckpt.output_dir": directory,
        "--ckpt.path": directory / "checkpoints",
    }
    own += [str(part) for pair in paths.items() for part in pair]
    return [*own, *(part.replace("VALIDATION", str(validation_file)) for part in theirs)]


def start(
    directory: Path, ours: Sequence[str], theirs: Sequence[str], *, command: Sequence[str] = OURS, num_prompts: int = 24
) -> subprocess.Popen:
    """Start a job in a session of its own, its output in `directory/train.log`."""
    directory.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, *command, "--cpu.param_dtype", "float32", "--cpu.kv_cache_bytes", str(256 << 20), *ours]
    line += ["--", *arguments(directory, theirs, num_prompts=num_prompts)]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    with (directory / "train.log").open("wb") as log:
        return subprocess.Popen(
            line, stdout=log, stderr=subprocess.STDOUT, cwd=directory, start_new_session=True,
            preexec_fn=_take_ctrl_c, env={**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": path},
        )  # fmt: skip


def _take_ctrl_c() -> None:
    # A shell's background jobs ignore it, and would hand that down.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def train(
    directory: Path,
    theirs: Sequence[str] = (),
    *,
    ours: Sequence[str] = DRAFTING,
    command: Sequence[str] = OURS,
    num_prompts: int = 24,
) -> Run:
    """Run to the end; a failure shows the log's end."""
    process = start(directory, ours, theirs, command=command, num_prompts=num_prompts)
    try:
        exit_code = process.wait(TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        exit_code = None
    log = (directory / "train.log").read_text(errors="replace")
    assert exit_code == 0, f"exit code {exit_code}; the log ends:\n{log[-6000:]}"
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return Run(
        directory=directory,
        steps={record["step"]: record for record in records if "policy_loss" in record},
        evaluations={record["step"]: record for record in records if "eval_num_samples" in record},
        log=log,
    )
