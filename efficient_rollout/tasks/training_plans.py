"""Everything that determines an embedded policy, by size: difficulty, shape, and how it is trained."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from efficient_rollout.errors import ConfigError
from efficient_rollout.tasks.arithmetic import GENERATOR_VERSION, Level
from efficient_rollout.tasks.tokenizer import CHAT_TEMPLATE, vocabulary

CARD_FILE = "training.json"
MIN_ACCURACY, MAX_ACCURACY = 0.2, 0.8
"""Validation accuracy at temperature 1 of a finished policy: rewarded often enough, and with something to learn."""

MAX_POSITIONS = 4096
"""Longest sequence the checkpoints declare, in tokens: more than any level needs, so that users may sample longer."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Says how a policy is trained by AdamW, at a constant rate after a linear warm-up, and when that ends.

    It ends at the first measurement of sampled validation accuracy that is good enough.

    Attributes:
        batch_tokens: Most tokens of a batch, padding included; a longer problem is a batch of its own.
        easy_steps: Optimizer steps at the beginning that only see worked answers of up to `easy_response_tokens`;
            none of them is followed by a measurement.
        measure_steps: Optimizer steps between two measurements, each of `measure_problems`.
    """

    learning_rate: float
    batch_tokens: int
    warmup_steps: int
    easy_steps: int
    easy_response_tokens: int
    max_steps: int
    measure_steps: int
    measure_problems: int
    stop_accuracy: float


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Is the plan of one reproducible policy; `final_problems` are those of the measurement in `CARD_FILE`.

    `shape` has arguments of `Qwen3Config`; packed kernels want linear dimensions that are multiples of 64.
    """

    level: Level
    shape: Mapping[str, Any]
    schedule: Schedule
    final_problems: int
    seed: int = 0

    def as_dict(self) -> dict:
        """Return plain data that determines the checkpoint, but for libraries and the processor."""
        tokenizer = json.dumps([*vocabulary(), CHAT_TEMPLATE])
        return {
            **asdict(self),
            "generator_version": GENERATOR_VERSION,
            "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest()[:12],
        }


_PLANS = {
    "nano": TrainingPlan(
        Level(
            median_operands=3, log_sigma_operands=0.5, min_operands=2, max_operands=8, max_digits=1,
            max_response_tokens=64,
        ),
        {
            "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 32, "tie_word_embeddings": True,
        },
        Schedule(
            learning_rate=1e-3, batch_tokens=1024, warmup_steps=30, easy_steps=0, easy_response_tokens=64,
            max_steps=4000, measure_steps=25, measure_problems=128, stop_accuracy=0.45,
        ),
        final_problems=512,
    ),
    "small": TrainingPlan(
        Level(
            median_operands=4, log_sigma_operands=0.7, min_operands=2, max_operands=16, max_digits=1,
            max_response_tokens=256,
        ),
        {
            "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 8,
            "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": False,
        },
        Schedule(
            learning_rate=1e-3, batch_tokens=1024, warmup_steps=30, easy_steps=200, easy_response_tokens=40,
            max_steps=6000, measure_steps=60, measure_problems=96, stop_accuracy=0.45,
        ),
        final_problems=256,
    ),
}  # fmt: skip

SIZES = tuple(_PLANS)


def level_of(size: str) -> Level:
    """Return the difficulty a policy of this size is trained on; errors are those of `plan_of`."""
    return plan_of(size).level


def plan_of(size: str, *, seed: int = 0, tied: bool | None = None) -> TrainingPlan:
    """Return the plan of one of `SIZES`; `tied` shares the output head with the embedding, None as the size does.

    Raises:
        ConfigError: There is no such size, or the seed is not one.
    """
    if size not in _PLANS:
        raise ConfigError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be 0 to {2**32 - 1}, got {seed}")
    plan = replace(_PLANS[size], seed=seed)
    return plan if tied is None else replace(plan, shape={**plan.shape, "tie_word_embeddings": tied})
