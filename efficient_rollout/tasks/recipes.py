"""Everything that determines an embedded policy, per size: model shape, data, schedule and when to stop."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Literal, get_args

from efficient_rollout.errors import ConfigError
from efficient_rollout.tasks.arithmetic import GENERATOR_VERSION, Level
from efficient_rollout.tasks.tokenizer import CHAT_TEMPLATE, VOCAB_SIZE, vocabulary

Size = Literal["nano", "small", "bench"]
SIZES: tuple[str, ...] = get_args(Size)

MIN_ACCURACY, MAX_ACCURACY = 0.2, 0.8
"""Validation accuracy at temperature 1 a finished policy must have: right often enough to be rewarded, and wrong
often enough to learn."""

MAX_POSITIONS = 4096
"""Longest sequence the checkpoints declare, in tokens: more than any level needs, so that users may sample longer."""

RECIPE_VERSION = 3
"""Raised when training code changes in a way the fields below do not show."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Qwen3 decoder. Every linear dimension must be a multiple of 64, for packed INT8 and INT4 kernels.

    Attributes:
        dtype: Of the saved weights; training is in float32.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tied_embeddings: bool
    dtype: Literal["float32", "bfloat16"]

    def __post_init__(self) -> None:
        dims = {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_heads * head_dim": self.num_heads * self.head_dim,
            "num_kv_heads * head_dim": self.num_kv_heads * self.head_dim,
        }
        for name, dim in dims.items():
            if dim % 64:
                raise ConfigError(f"{name} must be a multiple of 64, got {dim}")

    @property
    def num_parameters(self) -> int:
        """Trainable parameters; a tied output head is counted once."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads) + 2 * self.head_dim
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = VOCAB_SIZE * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the policy is trained, and when it stops.

    Attributes:
        learning_rate: Peak rate of Muon and AdamW, constant after a linear warm-up.
        batch_tokens: Most tokens of a batch, padding included.
        warmup_steps: Optimizer steps of the warm-up.
        easy_steps: Optimizer steps at the beginning that only see problems of up to `easy_response_tokens`.
        easy_response_tokens: Longest worked answer among those.
        max_steps: Optimizer steps after which training gives up.
        eval_every_steps: Optimizer steps between two measurements of sampled validation accuracy.
        eval_problems: Problems of each such measurement.
        final_problems: Problems of the measurement written to the recipe file.
        target_accuracy: Training stops at the first measurement at or above it.
        num_threads: Threads of torch's operators; None uses every core. With one, training does not stall where other
            work keeps the cores busy, and ends with the same weights however many there are.
        resumable: Save optimizer state at every measurement, and continue from it after an interruption.
    """

    learning_rate: float
    batch_tokens: int
    warmup_steps: int
    easy_steps: int
    easy_response_tokens: int
    max_steps: int
    eval_every_steps: int
    eval_problems: int
    final_problems: int
    target_accuracy: float
    num_threads: int | None
    resumable: bool


@dataclass(frozen=True, slots=True)
class Recipe:
    """One reproducible policy."""

    size: Size
    seed: int
    level: Level
    shape: ModelShape
    schedule: Schedule

    def as_dict(self) -> dict:
        """Plain data that determines the checkpoint, library versions included."""
        return {
            **asdict(self),
            "recipe_version": RECIPE_VERSION,
            "generator_version": GENERATOR_VERSION,
            "tokenizer": _short_hash([*vocabulary(), CHAT_TEMPLATE]),
            "transformers": version("transformers"),
        }

    @property
    def key(self) -> str:
        """`<size>-<hash>`: equal for equal recipes, and a name for a cache directory."""
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
    "nano": ModelShape(
        hidden_size=256,
        intermediate_size=512,
        num_layers=2,
        num_heads=8,
        num_kv_heads=4,
        head_dim=32,
        tied_embeddings=True,
        dtype="float32",
    ),
    "small": ModelShape(
        hidden_size=256,
        intermediate_size=768,
        num_layers=3,
        num_heads=8,
        num_kv_heads=2,
        head_dim=64,
        tied_embeddings=False,
        dtype="bfloat16",
    ),
    "bench": ModelShape(
        hidden_size=1024,
        intermediate_size=3072,
        num_layers=9,
        num_heads=16,
        num_kv_heads=8,
        head_dim=64,
        tied_embeddings=False,
        dtype="bfloat16",
    ),
}

_SCHEDULES = {
    "nano": Schedule(
        learning_rate=3e-3,
        batch_tokens=1024,
        warmup_steps=30,
        easy_steps=0,
        easy_response_tokens=64,
        max_steps=2000,
        eval_every_steps=25,
        eval_problems=128,
        final_problems=512,
        target_accuracy=0.45,
        num_threads=1,
        resumable=False,
    ),
    "small": Schedule(
        learning_rate=3e-3,
        batch_tokens=1024,
        warmup_steps=30,
        easy_steps=200,
        easy_response_tokens=40,
        max_steps=3000,
        eval_every_steps=60,
        eval_problems=96,
        final_problems=256,
        target_accuracy=0.45,
        num_threads=1,
        resumable=False,
    ),
    "bench": Schedule(
        learning_rate=1e-3,
        batch_tokens=2048,
        warmup_steps=30,
        easy_steps=200,
        easy_response_tokens=64,
        max_steps=5000,
        eval_every_steps=20,
        eval_problems=64,
        final_problems=192,
        target_accuracy=0.45,
        num_threads=None,
        resumable=True,
    ),
}


def level_of(size: str) -> Level:
    """The difficulty a policy of this size is trained on.

    Raises:
        ConfigError: There is no such size.
    """
    return _LEVELS[_checked(size)]


def recipe_of(size: str, *, seed: int = 0, tied: bool | None = None) -> Recipe:
    """The recipe of a size.

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
    shape = _SHAPES[checked]
    if tied is not None:
        shape = replace(shape, tied_embeddings=tied)
    return Recipe(checked, seed, _LEVELS[checked], shape, _SCHEDULES[checked])


def _checked(size: str) -> Size:
    for known in get_args(Size):
        if size == known:
            return known
    raise ConfigError(f"size must be one of {', '.join(SIZES)}, got {size!r}")


def _short_hash(data: list | dict) -> str:
    """Twelve hexadecimal digits that change with any of the data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]
