"""Noise of a request's next positions, the same whoever asks for it, and how often; the draws that it decides; seeds.

A draw from the distribution p is the token with the largest p(v) / e(v), where e(v) are independent and exponentially
distributed. Where a draft model and the policy take their largest with the same e, they mostly take the same token, and
the policy's is a draw of its own whatever the other one took (arXiv 2408.07978).
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence

import torch

from efficient_rollout.drafter.cpu.native.library import address, load_library

_CHUNK = 8192  # tokens; `er_gumbel_draw` splits a row so


class GeneratorNoise:
    """Takes noise out of a request's own generator, a row for each token, in the order of stock vLLM's sampler."""

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
    """Computes noise from a request's 64 bit key, a position and a token, with nothing to keep (`gumbel_draw`)."""

    __slots__ = ("key", "num_sampled")

    def __init__(self, key: int) -> None:
        self.key, self.num_sampled = key, 0

    def advance(self, num_positions: int) -> None:
        """Stand so many positions further."""
        self.num_sampled += num_positions


# Knows where one request stands in its noise; the next position is 0.
NoiseStream = GeneratorNoise | CountedNoise


def stream_key(*parts: int | str) -> int:
    """Return 64 bits that belong to what is named, and have nothing in common with those of any other name."""
    digest = hashlib.sha256(" ".join(map(str, ("efficient_rollout", *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def request_seed(seed: int, *parts: int | str) -> int:
    """Return a seed for what is named, as vLLM takes it: 63 bits."""
    return stream_key("seed", seed, *parts) >> 1


def tokens_digest(token_ids: Sequence[int]) -> str:
    """Return a name of a sequence of tokens that no other sequence has."""
    return hashlib.sha256(array("q", token_ids).tobytes()).hexdigest()


class TrajectorySeeds:
    """Makes seeds for the requests of one trajectory: one, or one for each turn or branch.

    A request is told from the others of its trajectory, whose own `base` is, by what is asked, and where the same is
    asked again, by how often: not by when, so that branches side by side have their seeds whichever comes first.
    """

    def __init__(self, base: int) -> None:
        self.base = base
        self._asked: Counter[tuple[str, int | None]] = Counter()

    def next_seed(self, prompt_token_ids: Sequence[int], own: int | None) -> int:
        """Return the seed of a request that is made now, 63 bits; its `own` one chooses among the trajectory's."""
        asked = (tokens_digest(prompt_token_ids), own)
        self._asked[asked] += 1
        return request_seed(self.base, asked[0], "none" if own is None else own, self._asked[asked])


def draw(logits: torch.Tensor, streams: Sequence[NoiseStream], positions: Sequence[int]) -> torch.Tensor:
    """Draw a token for each row, int64 [rows]; no stream advances.

    Args:
        logits: float32 [rows, vocab], of the distribution to draw from; -inf where a token is not allowed.
        streams: Of each row's request.
        positions: Of each row in its stream, 0 for the request's next token.

    Raises:
        ValueError: There are more rows, or fewer.
    """
    if len(streams) != len(logits):
        raise ValueError(f"{len(logits)} rows of logits, and {len(streams)} streams")
    tokens = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    for kind, draw_rows in ((CountedNoise, _draw_counted), (GeneratorNoise, _draw_generated)):
        rows = [row for row, stream in enumerate(streams) if isinstance(stream, kind)]
        if len(rows) == len(streams):
            return draw_rows(logits, streams, positions)
        if rows:
            tokens[rows] = draw_rows(logits[rows], [streams[row] for row in rows], [positions[row] for row in rows])
    return tokens


def _draw_generated(logits: torch.Tensor, streams: Sequence[NoiseStream], positions: Sequence[int]) -> torch.Tensor:
    # In stock vLLM's own operations, so that a request with a seed samples what stock samples.
    noise = torch.stack(
        [stream.row(position, logits.shape[1]) for stream, position in zip(streams, positions, strict=True)]
    )
    probabilities = logits.softmax(dim=-1, dtype=torch.float32)
    if noise.dtype == probabilities.dtype:
        return probabilities.div_(noise).argmax(dim=-1)
    return noise.reciprocal_().mul_(probabilities).argmax(dim=-1)


def _draw_counted(logits: torch.Tensor, streams: Sequence[NoiseStream], positions: Sequence[int]) -> torch.Tensor:
    pairs = zip(streams, positions, strict=True)
    keys = [(stream.key, stream.num_sampled + position) for stream, position in pairs]
    return gumbel_draw(logits, keys)


def gumbel_draw(logits: torch.Tensor, keys: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Draw the largest logit minus the logarithm of exponential noise, which needs no softmax: int64 [rows].

    Random bits are Philox4x32-10's (Salmon et al., SC 2011) for the counter (token // 32 * 8 + lane, position) and the
    key; the same token is drawn from a row whatever rows are beside it.

    Args:
        logits: float32 [rows, vocab].
        keys: A 64-bit key and a position for each row.

    Raises:
        SchemeUnavailableError: The kernel cannot be compiled here (`native_missing`).
        ValueError: There are more rows than keys, or fewer.
    """
    num_rows, vocab_size = logits.shape
    if len(keys) != num_rows:
        raise ValueError(f"{num_rows} rows of logits, and keys for {len(keys)}")
    logits = logits.float().contiguous()
    words = torch.tensor([[key - (1 << 64) if key >> 63 else key, position] for key, position in keys])
    tokens = torch.empty(num_rows, dtype=torch.int64)
    scratch = torch.empty(num_rows * -(-vocab_size // _CHUNK), 2, dtype=torch.int64)
    load_library().er_gumbel_draw(
        address(logits), num_rows, vocab_size, address(words), address(scratch), address(tokens)
    )
    return tokens
