"""Arms of one training run with `rollout_seed`, which must be one training run."""

import json
from collections.abc import Sequence
from pathlib import Path

from reproducible_support import assert_one_drafted, assert_same_training, training
from verl_support import Run

SETTINGS = "actor_rollout_ref.rollout.custom.efficient_rollout"
COMMON = (
    "recipe=grpo",
    "size=nano",
    # The coarsest: every position of a chain has been wrong somewhere.
    "drafter=int4",
    f"+{SETTINGS}.verify_kernel=native",
    f"{SETTINGS}.rollout_seed=5",
    "data.seed=1",
    "data.train_batch_size=16",
    "actor_rollout_ref.rollout.n=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.optim.lr=1e-4",
    "actor_rollout_ref.rollout.dtype=float32",
    "actor_rollout_ref.rollout.val_kwargs.do_sample=true",
    "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
)
NUM_RESPONSES = 16 * 8  # of a step
ARMS = {"drafting": ("controller=always",), "never": ("controller=never",), "plain": ("efficient_rollout=off",)}
REQUIRED = frozenset({"actor/loss", "actor/grad_norm", "critic/rewards/mean"})


def overrides_of(arm: str, directory: Path, *, use_v1: bool) -> list[str]:
    """A run of an arm, which also writes its responses."""
    trainer = (f"trainer.use_v1={str(use_v1).lower()}", f"trainer.rollout_data_dir={directory / 'responses'}")
    return [*COMMON, *ARMS[arm], *trainer]


def responses(run: Run, step: int) -> list[tuple[str, str, float]]:
    """Prompts, responses and scores; the file's order is that in which responses were finished."""
    lines = (run.directory / "responses" / f"{step}.jsonl").read_text().splitlines()
    return sorted((row["input"], row["output"], row["score"]) for row in map(json.loads, lines))


def assert_identical(one: Run, other: Run, *, num_steps: int, without: Sequence[str] = ()) -> None:
    """Every response, and every number that was trained on, of so many steps, of which one run drafted."""
    ones, others = ({step: run.steps[step] for step in range(1, num_steps + 1)} for run in (one, other))
    assert_same_training(ones, others, num_steps=num_steps, required=REQUIRED, without=tuple(without))
    for step in ones:
        assert responses(one, step) == responses(other, step)
    assert 0 in one.validations
    for step in one.validations:
        assert training(one.validations[step]) == training(other.validations[step])
    assert_one_drafted(ones, others)
