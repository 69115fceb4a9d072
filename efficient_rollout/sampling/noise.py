"""Noise of a request's next positions, the same whoever asks for it, and how often.

A draw from the distribution p is the token with the largest p(v) / e(v), where e(v) are independent and exponentially
distributed. Where a draft model and the policy take their largest with the same e, they mostly take the same token, and
the policy's is a draw of its own whatever the other one took (arXiv 2408.07978).
"""

import hashlib
from typing import Protocol

import torch


class NoiseStream(Protocol):
    """Knows where one request stands in its noise; the next position is 0."""

    def advance(self, num_positions: int) -> None:
        """Note that the request has so many tokens more."""


class GeneratorNoise:
    """Takes noise out of a generator, a row for each token.

    It is drawn in the order and the shape of stock vLLM's sampler.

    Args:
        generator: The request's own; nobody else draws from it.
        dtype: Of the noise.
    """

    def __init__(self, generator: torch.Generator, dtype: torch.dtype) -> None:
        self._generator, self._dtype = generator, dtype
        # Drawn for drafts, and not used up yet: one row for each.
        self._rows: list[torch.Tensor] = []

    def row(self, position: int, vocab_size: int) -> torch.Tensor:
        """Return the noise of a position, [vocab_size]; it is not to be written to."""
        while len(self._rows) <= position:
            row = torch.empty(vocab_size, dtype=self._dtype, device=self._generator.device)
            self._rows.append(row.exponential_(generator=self._generator))
        return self._rows[position]

    def advance(self, num_positions: int) -> None:
        """Forget the rows of tokens that stand."""
        if num_positions > len(self._rows):
            raise ValueError(f"{num_positions} tokens were sampled, with noise of {len(self._rows)}")
        del self._rows[:num_positions]


class CountedNoise:
    """Computes noise from a key, a position and a token, with nothing to keep (`gumbel_draw`).

    Attributes:
        key: Of the request, 64 bits.
        num_sampled: Tokens that the request has sampled.
    """

    __slots__ = ("key", "num_sampled")

    def __init__(self, key: int) -> None:
        self.key, self.num_sampled = key, 0

    def advance(self, num_positions: int) -> None:
        """Stand so many positions further."""
        self.num_sampled += num_positions


def stream_key(*parts: int | str) -> int:
    """Return 64 bits that belong to what is named.

    They have nothing in common with those of any other name.
    """
    digest = hashlib.sha256(" ".join(map(str, ("efficient_rollout", *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def request_seed(seed: int, *parts: int | str) -> int:
    """Return a seed for what is named, as vLLM takes it: 63 bits."""
    return stream_key("seed", seed, *parts) >> 1
