"""Everything that determines an embedded policy, per size: model shape, data, schedule and when to stop."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Literal, get_args

from efficient_rollout.errors import ConfigError
from efficient_rollout.tasks.arithmetic import GENERATOR_VERSION, Level
from efficient_rollout.tasks.policy_shape import PolicyShape
from efficient_rollout.tasks.tokenizer import CHAT_TEMPLATE, vocabulary

Size = Literal["nano", "small", "bench"]
SIZES: tuple[str, ...] = get_args(Size)

CARD_FILE, TRAINED_FILE = "training.json", "trained.json"  # plan and results, last of all; plan, before measuring
MIN_ACCURACY, MAX_ACCURACY = 0.2, 0.8
"""Validation accuracy at temperature 1 of a finished policy: rewarded often enough, and with something to learn."""

MAX_POSITIONS = 4096
"""Longest sequence the checkpoints declare, in tokens: more than any level needs, so that users may sample longer."""

PLAN_VERSION = 4
"""Raised when training code changes in a way the fields below do not show."""


@dataclass(frozen=True, slots=True)
class Stop:
    """When training ends early: at the first measurement that is good enough.

    Attributes:
        every_steps: Optimizer steps between two measurements of sampled validation accuracy; easy steps have none.
        num_problems: Problems of each measurement.
        accuracy: Training stops at the first measurement at or above it.
    """

    every_steps: int
    num_problems: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a model is trained, and when that ends.

    Attributes:
        optimizer: Of the weight matrices; everything else is always AdamW's. Muon needs fewer steps, and for each step
            several products of every matrix with itself, which a wide model on a CPU cannot afford.
        learning_rate: Peak rate, constant after a linear warm-up.
        batch_tokens: Most tokens of a batch, padding included; a longer problem is a batch of its own.
        warmup_steps: Optimizer steps of the warm-up.
        easy_steps: Optimizer steps at the beginning that only see problems of up to `easy_response_tokens`.
        easy_response_tokens: Longest worked answer among those.
        max_steps: Optimizer steps after which training ends in any case.
        stop: When it ends before; None is never.
        num_threads: Threads of torch's operators; None uses every core. With one, training does not stall where other
            work keeps the cores busy, and ends with the same weights however many there are.
    """

    optimizer: Literal["muon", "adamw"]
    learning_rate: float
    batch_tokens: int
    warmup_steps: int
    easy_steps: int
    easy_response_tokens: int
    max_steps: int
    stop: Stop | None
    num_threads: int | None


@dataclass(frozen=True, slots=True)
class Growth:
    """What becomes of a trained core (see `efficient_rollout.tasks.growth`).

    Attributes:
        core: Shape of the model that is trained first, by the plan's schedule.
        core_response_tokens: Longest worked answer of that training; the rest sees the whole level. A small model that
            cannot add yet learns little from answers that are nearly all copying.
        core_schedule: By which the core is then trained on the whole level.
        spread: Differences between the copies of a weight, relative to the spread of its row.
        schedule: By which the grown model is trained on.
    """

    core: PolicyShape
    core_response_tokens: int
    core_schedule: Schedule
    spread: float
    schedule: Schedule


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """One reproducible policy.

    Attributes:
        shape: Of the finished policy.
        schedule: Of the training from scratch.
        growth: How that training's result becomes the policy; None where it is the policy.
        final_problems: Problems of the measurement written to the plan file.
    """

    size: Size
    seed: int
    level: Level
    shape: PolicyShape
    schedule: Schedule
    growth: Growth | None
    final_problems: int

    def as_dict(self) -> dict:
        """Plain data that determines the checkpoint, library versions included."""
        return {
            **asdict(self),
            "plan_version": PLAN_VERSION,
            "generator_version": GENERATOR_VERSION,
            "tokenizer": _short_hash([*vocabulary(), CHAT_TEMPLATE]),
            "transformers": version("transformers"),
        }

    @property
    def key(self) -> str:
        """`<size>-<hash>`: equal for equal plans, and a name for a cache directory."""
        return f"{self.size}-{_short_hash(self.as_dict())}"


_LEVELS = {
    "nano": Level(
        median_operands=3,
        log_sigma_operands=0.5,
        min_operands=2,
        max_operands=8,
        max_digits=1,
        max_response_tokens=64,
    ),
    "small": Level(
        median_operands=4,
        log_sigma_operands=0.7,
        min_operands=2,
        max_operands=16,
        max_digits=1,
        max_response_tokens=256,
    ),
    "bench": Level(
        median_operands=5,
        log_sigma_operands=0.85,
        min_operands=2,
        max_operands=40,
        max_digits=1,
        max_response_tokens=2048,
    ),
}

_SHAPES = {
    "nano": PolicyShape(
        hidden_size=256,
        intermediate_size=512,
        num_layers=2,
        num_heads=8,
        num_kv_heads=4,
        head_dim=32,
        tied_embeddings=True,
    ),
    "small": PolicyShape(
        hidden_size=256,
        intermediate_size=768,
        num_layers=3,
        num_heads=8,
        num_kv_heads=2,
        head_dim=64,
        tied_embeddings=False,
    ),
    "bench": PolicyShape(
        hidden_size=1024,
        intermediate_size=3072,
        num_layers=9,
        num_heads=16,
        num_kv_heads=8,
        head_dim=64,
        tied_embeddings=False,
    ),
}

_SCHEDULES = {
    "nano": Schedule(
        optimizer="muon",
        learning_rate=3e-3,
        batch_tokens=1024,
        warmup_steps=30,
        easy_steps=0,
        easy_response_tokens=64,
        max_steps=2000,
        stop=Stop(every_steps=25, num_problems=128, accuracy=0.45),
        num_threads=1,
    ),
    "small": Schedule(
        optimizer="muon",
        learning_rate=3e-3,
        batch_tokens=1024,
        warmup_steps=30,
        easy_steps=200,
        easy_response_tokens=40,
        max_steps=3000,
        stop=Stop(every_steps=60, num_problems=96, accuracy=0.45),
        num_threads=1,
    ),
    "bench": Schedule(
        optimizer="muon",
        learning_rate=3e-3,
        batch_tokens=1024,
        warmup_steps=30,
        easy_steps=400,
        easy_response_tokens=48,
        max_steps=800,
        stop=Stop(every_steps=50, num_problems=96, accuracy=0.45),
        num_threads=1,
    ),
}

_GROWTHS = {
    "bench": Growth(
        core=PolicyShape(
            hidden_size=256,
            intermediate_size=768,
            num_layers=3,
            num_heads=4,
            num_kv_heads=2,
            head_dim=64,
            tied_embeddings=False,
        ),
        core_response_tokens=256,
        core_schedule=Schedule(
            optimizer="muon",
            learning_rate=3e-4,
            batch_tokens=2048,
            warmup_steps=10,
            easy_steps=0,
            easy_response_tokens=64,
            max_steps=60,
            stop=None,
            num_threads=1,
        ),
        spread=2.0,
        schedule=Schedule(
            optimizer="adamw",
            learning_rate=1e-4,
            batch_tokens=1024,
            warmup_steps=10,
            easy_steps=0,
            easy_response_tokens=64,
            max_steps=20,
            stop=None,
            num_threads=None,
        ),
    )
}

_FINAL_PROBLEMS = {"nano": 512, "small": 256, "bench": 96}


def level_of(size: str) -> Level:
    """The difficulty a policy of this size is trained on.

    Raises:
        ConfigError: There is no such size.
    """
    return _LEVELS[_checked(size)]


def plan_of(size: str, *, seed: int = 0, tied: bool | None = None) -> TrainingPlan:
    """The plan of a size.

    Args:
        size: "nano", "small" or "bench".
        seed: Of the initial weights and the training data.
        tied: Share the output head with the embedding, or not; None keeps the size's own choice.

    Raises:
        ConfigError: There is no such size, or the seed is not one.
    """
    checked = _checked(size)
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be 0 to {2**32 - 1}, got {seed}")
    shape, growth = _SHAPES[checked], _GROWTHS.get(checked)
    if tied is not None:
        shape = replace(shape, tied_embeddings=tied)
        growth = growth and replace(growth, core=replace(growth.core, tied_embeddings=tied))
    return TrainingPlan(checked, seed, _LEVELS[checked], shape, _SCHEDULES[checked], growth, _FINAL_PROBLEMS[checked])


def _checked(size: str) -> Size:
    for known in get_args(Size):
        if size == known:
            return known
    raise ConfigError(f"size must be one of {', '.join(SIZES)}, got {size!r}")


def _short_hash(data: list | dict) -> str:
    """Twelve hexadecimal digits that change with any of the data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]
