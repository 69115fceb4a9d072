"""Jobs of `efficient-rollout openrlhf`, for the tests."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job_support import log_of, start_job

from efficient_rollout.metrics import names
from efficient_rollout.tasks import reward_func
from efficient_rollout.tasks.dataset import write_dataset
from efficient_rollout.tasks.policy import ensure_policy

OURS = ("-m", "efficient_rollout", "openrlhf")
DRAFTING = ("--efficient_rollout.controller.rule=always", "--efficient_rollout.drafter.scheme=int8")
# Rounding of float32 between two implementations of the policy: 6e-7 to 1.3e-4 were seen, and 2e-2 where a sync was
# left out (test_openrlhf_syncs.py).
MAX_PROBABILITY_DIFFERENCE = 1e-3


@dataclass(frozen=True)
class Run:
    """A finished run: its `--ckpt.output_dir`, records of its metrics file by step, and everything printed."""

    directory: Path
    steps: dict[int, dict[str, Any]]
    evaluations: dict[int, dict[str, Any]]
    log: str


def arguments(
    directory: Path, theirs: Sequence[str] = (), *, num_prompts: int = 24, num_validation: int = 8
) -> list[str]:
    """OpenRLHF's arguments for GRPO on the embedded task, a step for each 8 prompts; the later of two wins."""
    train_file, validation_file = write_dataset(
        directory, size="nano", num_train=num_prompts, num_validation=num_validation
    )
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
    directory: Path, ours: Sequence[str], theirs: Sequence[str], *, command: Sequence[str] = OURS, **sizes: int
) -> subprocess.Popen:
    """Start a job in a session of its own, its output in `directory/train.log`; `sizes` are those of `arguments`."""
    line = [*command, "--cpu.param_dtype", "float32", "--cpu.kv_cache_bytes", str(256 << 20), *ours]
    return start_job([*line, "--", *arguments(directory, theirs, **sizes)], directory)


def train(
    directory: Path,
    theirs: Sequence[str] = (),
    *,
    ours: Sequence[str] = DRAFTING,
    command: Sequence[str] = OURS,
    **sizes: int,
) -> Run:
    """Run to the end; a failure shows the log's end."""
    process = start(directory, ours, theirs, command=command, **sizes)
    log = log_of(process, directory)
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return Run(
        directory=directory,
        steps={record["step"]: record for record in records if "policy_loss" in record},
        evaluations={record["step"]: record for record in records if "eval_num_samples" in record},
        log=log,
    )


def assert_drafted(run: Run, num_steps: int) -> None:
    """Drafts were accepted in every step, and the drafter followed every sync."""
    assert sorted(run.steps) == list(range(1, num_steps + 1))
    for record in run.steps.values():
        assert record[names.MEAN_ACCEPTED_LENGTH] > 2
        assert record[names.DRAFTER_FAULTS] == record[names.STALE_DRAFTER] == 0
        assert record[names.WEIGHT_SYNC_SECONDS] > 0
        assert record[names.REQUANTIZE_SECONDS] > 0


def assert_engine_follows_trainer(run: Run) -> None:
    """The probabilities of the sampled tokens, in every step, and the checksums of what each sync brought."""
    assert {record.get(names.WEIGHTS_AS_SENT) for record in run.steps.values()} - {None} == {1}
    for record in run.steps.values():
        assert record[names.PROBABILITY_DIFFERENCE] <= MAX_PROBABILITY_DIFFERENCE
