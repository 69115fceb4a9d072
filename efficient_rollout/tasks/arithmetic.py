"""Chains of additions, reduced one step at a time: a verifiable task with long-tailed worked answers.

The question `3+14+5+9=` has the worked answer `17+5+9=22+9=31.`: every step adds the two leftmost
operands and writes the rest again, so an answer with n operands costs on the order of n * n tokens. The number of
operands is lognormal: lengths have a heavy tail, as the responses of a reasoning model do.

Standard library only: data can be generated, and rewards computed, where torch is not installed.
"""

import hashlib
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from efficient_rollout.errors import ConfigError

GENERATOR_VERSION = 1
"""Raised whenever the same seed would give other problems."""

DATA_SOURCE = "efficient_rollout/arithmetic"
ANSWER_END = "."
"""Closes a worked answer, so that a truncated number is never taken for the answer."""

Split = Literal["train", "validation"]
_VALIDATION_SHARE = 1 / 10


@dataclass(frozen=True, slots=True)
class Level:
    """Says how hard problems are, and how long their worked answers get, their end-of-sequence token included.

    The number of operands is lognormal, cut at both ends; the number of an operand's decimal digits is uniform from 1.
    """

    median_operands: float
    log_sigma_operands: float
    min_operands: int
    max_operands: int
    max_digits: int
    max_response_tokens: int

    def capped(self, max_response_tokens: int) -> "Level":
        """Return the same level without the problems whose worked answers exceed `max_response_tokens`.

        Raises:
            ConfigError: No problem of this level is that short.
        """
        shortest = Problem((1,) * self.min_operands).num_response_tokens
        if max_response_tokens < shortest:
            raise ConfigError(
                f"max_response_tokens is {max_response_tokens}, but the shortest worked answer with "
                f"{self.min_operands} operands takes {shortest}; raise it to {shortest} or more"
            )
        return replace(self, max_response_tokens=min(max_response_tokens, self.max_response_tokens))


@dataclass(frozen=True, slots=True)
class Problem:
    """Is one sum of two or more non-negative operands."""

    operands: tuple[int, ...]

    @property
    def question(self) -> str:
        """Return the sum to work out, as the prompt shows it."""
        return "+".join(map(str, self.operands)) + "="

    @property
    def answer(self) -> str:
        """Return the sum's value, in decimal digits."""
        return str(sum(self.operands))

    @property
    def worked_answer(self) -> str:
        """Return every intermediate chain, leftmost pair reduced first, then `ANSWER_END`."""
        totals = itertools.accumulate(self.operands)
        chains = [(total, *self.operands[done:]) for done, total in enumerate(totals, start=1)]
        return "=".join("+".join(map(str, chain)) for chain in chains[1:]) + ANSWER_END

    @property
    def num_response_tokens(self) -> int:
        """Return the tokens of the worked answer: one a character, and one to end the sequence."""
        return len(self.worked_answer) + 1


def split_of(question: str) -> Split:
    """Return the split that a question of any task belongs to, by its hash: splits share none, whatever the seed."""
    digest = hashlib.sha256(question.encode()).digest()
    return "validation" if digest[0] < 256 * _VALIDATION_SHARE else "train"


def generate(level: Level, split: Split, seed: int) -> Iterator[Problem]:
    """Yield problems of one split without end; the same arguments always give the same sequence."""
    rng = random.Random(f"arithmetic-{GENERATOR_VERSION}-{split}-{seed}")
    while True:
        problem = _draw(level, rng)
        if problem.num_response_tokens <= level.max_response_tokens and split_of(problem.question) == split:
            yield problem


def take(level: Level, split: Split, seed: int, count: int) -> list[Problem]:
    """Return the first `count` problems of `generate`."""
    return list(itertools.islice(generate(level, split, seed), count))


def _draw(level: Level, rng: random.Random) -> Problem:
    while True:
        num_operands = int(rng.lognormvariate(math.log(level.median_operands), level.log_sigma_operands) + 0.5)
        if level.min_operands <= num_operands <= level.max_operands:
            # Lazily: an operand is drawn right behind its number of digits.
            digits = (rng.randint(1, level.max_digits) for _ in range(num_operands))
            return Problem(tuple(rng.randint(10 ** (number - 1), 10**number - 1) for number in digits))
