"""The token with the largest probability over noise, for rows of logits with a noise of their own each."""

from collections.abc import Sequence

import torch

from efficient_rollout.drafter.cpu.native.library import address, load_library, size
from efficient_rollout.sampling.noise import CountedNoise, GeneratorNoise, NoiseStream

_CHUNK = 8192  # tokens; `er_gumbel_draw` splits a row so


def draw(logits: torch.Tensor, streams: Sequence[NoiseStream], positions: Sequence[int]) -> torch.Tensor:
    """Draw a token for each row; no stream advances.

    Args:
        logits: float32 [rows, vocab], of the distribution to draw from; -inf where a token is not allowed.
        streams: Of each row's request.
        positions: Of each row in its stream, 0 for the request's next token.

    Returns:
        int64 [rows].

    Raises:
        ValueError: There are more rows, or fewer.
    """
    counted = [row for row, stream in enumerate(streams) if isinstance(stream, CountedNoise)]
    if len(counted) == len(streams):
        return _draw_counted(logits, streams, positions)
    tokens = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    generated = [row for row, stream in enumerate(streams) if isinstance(stream, GeneratorNoise)]
    for rows, draw_rows in ((counted, _draw_counted), (generated, _draw_generated)):
        if rows:
            chosen = logits if len(rows) == len(streams) else logits[rows]
            tokens[rows] = draw_rows(chosen, [streams[row] for row in rows], [positions[row] for row in rows])
    return tokens


def _draw_generated(logits: torch.Tensor, streams: Sequence[NoiseStream], positions: Sequence[int]) -> torch.Tensor:
    # In stock vLLM's own operations, so that a request with a seed samples what stock samples.
    noise = torch.stack(
        [stream.row(position, logits.shape[1]) for stream, position in zip(streams, positions, strict=True)]  # type: ignore[attr-defined]
    )
    probabilities = logits.softmax(dim=-1, dtype=torch.float32)
    if noise.dtype == probabilities.dtype:
        return probabilities.div_(noise).argmax(dim=-1)
    return noise.reciprocal_().mul_(probabilities).argmax(dim=-1)


def _draw_counted(logits: torch.Tensor, streams: Sequence[NoiseStream], positions: Sequence[int]) -> torch.Tensor:
    pairs = zip(streams, positions, strict=True)
    keys = [(stream.key, stream.num_sampled + position) for stream, position in pairs]  # type: ignore[attr-defined]
    return gumbel_draw(logits, keys)


def gumbel_draw(logits: torch.Tensor, keys: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Draw the largest logit minus the logarithm of exponential noise, which needs no softmax.

    Random bits are Philox4x32-10's (Salmon et al., SC 2011) for the counter (token // 32 * 8 + lane, position) and the
    key; the same token is drawn from a row whatever rows are beside it.

    Args:
        logits: float32 [rows, vocab].
        keys: A 64-bit key and a position for each row.

    Returns:
        int64 [rows].

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
        address(logits), size(num_rows), size(vocab_size), address(words), address(scratch), address(tokens)
    )
    return tokens
