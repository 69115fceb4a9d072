"""The last operation of vLLM's sampler, with noise that belongs to a request and a position."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from efficient_rollout.drafter.cpu.native.library import native_missing
from efficient_rollout.sampling.draw import draw
from efficient_rollout.sampling.noise import CountedNoise, GeneratorNoise, NoiseStream, stream_key


class RequestNoise:
    """A stream for each request of an engine, from its first token to its last.

    A request with a seed has the generator that stock gives it. One without has its number among this engine's
    requests, the engine's seed, and its rank: two engines of a server that get one prompt answer it each for itself.

    Args:
        runner: Whose requests they are.
        seed: The engine's; all engines of a server have one.
        rank: The engine's among those of its server.
        use_float64: vLLM's `use_fp64_gumbel`.
    """

    def __init__(self, runner: Any, seed: int, *, rank: int, use_float64: bool) -> None:
        self._runner = runner
        # An engine alone samples as the first of several does.
        self._engine = (seed,) if rank == 0 else (seed, "rank", rank)
        self._dtype = torch.float64 if use_float64 else torch.float32
        # Without the kernel, and in float64, a request without a seed gets a generator too, which is slower.
        self._is_counted = not use_float64 and native_missing() is None
        self._streams: dict[str, NoiseStream] = {}
        self._num_requests = 0

    def streams(self, num_requests: int) -> list[NoiseStream]:
        """Of the first rows of the batch; some noise for rows that are nobody's, as in vLLM's warm-up."""
        ids = self._runner.input_batch.req_ids[:num_requests]
        streams = [self._streams.get(request_id) or self._begin(request_id) for request_id in ids]
        return streams + [self._new(None, 0) for _ in range(num_requests - len(ids))]

    def advance(self, streams: Sequence[NoiseStream], num_emitted: Sequence[int]) -> None:
        """The first rows of the batch have so many tokens more.

        But for requests whose prompts are still being computed: the runner throws their tokens away.
        """
        is_prompt_left = self._runner.discard_request_mask.np
        for row, (stream, emitted) in enumerate(zip(streams, num_emitted, strict=True)):
            if not is_prompt_left[row]:
                stream.advance(emitted)

    def forget(self, request_ids: set[str]) -> None:
        """Requests that have ended."""
        for request_id in request_ids:
            self._streams.pop(request_id, None)

    def _begin(self, request_id: str) -> NoiseStream:
        self._num_requests += 1
        key = stream_key("request", *self._engine, self._num_requests)
        stream = self._streams[request_id] = self._new(self._runner.requests[request_id].generator, key)
        return stream

    def _new(self, generator: torch.Generator | None, key: int) -> NoiseStream:
        if generator is None and self._is_counted:
            return CountedNoise(key)
        return GeneratorNoise(generator or torch.Generator().manual_seed(key >> 1), self._dtype)


class NoiseSampler(torch.nn.Module):
    """In the place of a sampler's `topk_topp_sampler`.

    Args:
        noise: Of the engine's requests.
        logprobs_mode: The engine's.
    """

    def __init__(self, noise: RequestNoise, logprobs_mode: str) -> None:
        super().__init__()
        self.noise, self._logprobs_mode = noise, logprobs_mode
        self._rows: tuple[Sequence[NoiseStream], Sequence[int]] | None = None

    @contextmanager
    def rows(self, streams: Sequence[NoiseStream], positions: Sequence[int]) -> Iterator[None]:
        """While logits have these streams and positions; no stream advances."""
        self._rows = streams, positions
        try:
            yield
        finally:
            self._rows = None

    def forward(
        self, logits: torch.Tensor, _generators: Any, k: torch.Tensor | None, p: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Stock's contract: tokens int64 [rows], and the processed logits or log-probabilities where asked for.

        Outside of `rows`, logits are of the batch's next tokens, and its streams advance.
        """
        logits = apply_top_k_top_p(logits, k, p)
        returned = None
        if self._logprobs_mode == "processed_logits":
            returned = logits
        elif self._logprobs_mode == "processed_logprobs":
            returned = logits.log_softmax(dim=-1, dtype=torch.float32)
        if self._rows is not None:
            return draw(logits, *self._rows), returned
        streams = self.noise.streams(logits.shape[0])
        tokens = draw(logits, streams, [0] * len(streams))
        self.noise.advance(streams, [1] * len(streams))
        return tokens, returned
