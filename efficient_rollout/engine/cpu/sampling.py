"""Sample with noise that belongs to a request and a position: when drafting, verifying, and decoding plainly.

At each position of a chain the policy samples with the noise that belongs to it, exactly as without speculation. Drafts
stand while they are what it sampled; behind the first that is not, the tokens before a position are others than were
assumed, and what was sampled there is thrown away.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.rejection_sampler import PLACEHOLDER_TOKEN_ID
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from efficient_rollout.drafter.chains import Fed
from efficient_rollout.drafter.cpu.native.library import native_missing
from efficient_rollout.engine.cpu.positions import Positions, metadata_at
from efficient_rollout.sampling.noise import CountedNoise, GeneratorNoise, NoiseStream, draw, stream_key


class RequestNoise:
    """Keeps a stream for each request of a runner, from its first token to its last.

    A request with a seed has the generator that stock gives it. One without has its number among this engine's
    requests, the engine's seed, and its rank: two engines of a server that get one prompt answer it each for itself.

    Args:
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
        """Return the streams of the batch's first rows; those that are nobody's, as in a warm-up, get some noise."""
        ids = self._runner.input_batch.req_ids[:num_requests]
        streams = [self._streams.get(request_id) or self._begin(request_id) for request_id in ids]
        return streams + [self._new(None, 0) for _ in range(num_requests - len(ids))]

    def advance(self, streams: Sequence[NoiseStream], num_emitted: Sequence[int]) -> None:
        """Note that the first rows of the batch have so many tokens more.

        Requests whose prompts are still being computed have none: the runner throws their tokens away.
        """
        is_prompt_left = self._runner.discard_request_mask.np
        for row, (stream, emitted) in enumerate(zip(streams, num_emitted, strict=True)):
            if not is_prompt_left[row]:
                stream.advance(emitted)

    def forget(self, request_ids: set[str]) -> None:
        """Forget requests that have ended."""
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
    """Stands in the place of a sampler's `topk_topp_sampler`, with the noise of the engine's requests."""

    def __init__(self, noise: RequestNoise, logprobs_mode: str) -> None:
        super().__init__()
        self.noise, self._logprobs_mode = noise, logprobs_mode
        self._rows: tuple[Sequence[NoiseStream], Sequence[int]] | None = None

    @contextmanager
    def at(self, positions: Positions, streams: Sequence[NoiseStream]) -> Iterator[None]:
        """Give logits of these positions the noise of their requests until the block ends; no stream advances."""
        self._rows = [streams[request] for request in positions.requests], positions.steps
        try:
            yield
        finally:
            self._rows = None

    def forward(
        self, logits: torch.Tensor, _generators: Any, k: torch.Tensor | None, p: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw, by stock's contract: tokens int64 [rows], and processed logits or log-probabilities where asked for.

        Outside of `at`, logits are of the batch's next tokens, and its streams advance.
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


class Verifier(torch.nn.Module):
    """Stands in the place of a runner's rejection sampler; its sampler's last operation is `noise_sampler`."""

    def __init__(self, sampler: Sampler, noise_sampler: NoiseSampler, runner: Any) -> None:
        super().__init__()
        self.sampler, self._noise_sampler, self._runner = sampler, noise_sampler, runner

    def forward(
        self,
        metadata: SpecDecodeMetadata,
        draft_probs: None,
        logits: torch.Tensor,
        sampling_metadata: SamplingMetadata,
    ) -> SamplerOutput:
        """Sample at every position, and keep what stands.

        Args:
            metadata: The drafts, and how many each request has.
            logits: [drafts + requests, vocab], the policy's: a row for each draft of a request, and one more.

        Returns:
            Tokens int32 [requests, most drafts + 1], with stock's placeholder behind the last of each request; and
            log-probabilities of as many rows, where asked for.
        """
        drafts = [part.tolist() for part in metadata.draft_token_ids.split(metadata.num_draft_tokens)]
        rows = [
            (request, step, tokens[:step]) for request, tokens in enumerate(drafts) for step in range(len(tokens) + 1)
        ]
        positions = Positions.of(rows, self._runner.input_batch.req_output_token_ids, len(drafts))
        noise = self._noise_sampler.noise
        streams = noise.streams(len(drafts))
        with self._noise_sampler.at(positions, streams):
            sampled = self.sampler(logits, metadata_at(sampling_metadata, positions))
        tokens, num_emitted, sources = _emitted(sampled.sampled_token_ids[:, 0].numpy(), drafts)
        noise.advance(streams, num_emitted.tolist())
        return SamplerOutput(torch.from_numpy(tokens), _rows_of(sampled.logprobs_tensors, sources))


def _emitted(sampled: np.ndarray, drafts: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what stands of the samples, int32 [drafts + requests], by each request's drafts.

    Returns:
        Tokens int32 [requests, width], padded behind the last; how many of each request; and for every place of the
        first, int64 [requests x width], the row of `sampled` it came from, some row where it is padding.
    """
    counts = np.array([len(tokens) for tokens in drafts])
    starts = np.concatenate([[0], np.cumsum(counts + 1)[:-1]])
    places = np.arange(counts.max() + 1)
    sources = np.minimum(starts[:, None] + places, len(sampled) - 1)
    padded = np.full((len(drafts), len(places)), PLACEHOLDER_TOKEN_ID, dtype=np.int32)
    for row, tokens in enumerate(drafts):
        padded[row, : len(tokens)] = tokens
    samples = sampled[sources]
    num_accepted = np.cumprod(samples == padded, axis=1).sum(axis=1)
    tokens = np.where(places <= num_accepted[:, None], samples, PLACEHOLDER_TOKEN_ID)
    return tokens.astype(np.int32), num_accepted + 1, sources.ravel()


def _rows_of(logprobs: LogprobsTensors | None, sources: np.ndarray) -> LogprobsTensors | None:
    if logprobs is None:
        return None
    index = torch.from_numpy(sources)
    return LogprobsTensors(
        logprobs.logprob_token_ids[index], logprobs.logprobs[index], logprobs.selected_token_ranks[index]
    )


class DraftSampler:
    """Draws the tokens of a tick's chains, at any of their places.

    Args:
        sampler: The runner's, whose last operation is `noise_sampler`.
        sampling: Of the batch, as it was when the newest tokens were sampled.
        new_tokens: Of each request, those that `sampling` does not know yet: accepted drafts, and the newest.
        outputs: The runner's lists of each request's sampled tokens.
    """

    def __init__(
        self,
        sampler: Sampler,
        noise_sampler: NoiseSampler,
        sampling: SamplingMetadata,
        new_tokens: list[list[int]],
        outputs: list[list[int]],
    ) -> None:
        self._sampler, self._noise_sampler = sampler, noise_sampler
        self._new_tokens, self._outputs = new_tokens, outputs
        self._streams = noise_sampler.noise.streams(len(new_tokens))
        self._sampling = replace(sampling, max_num_logprobs=None)
        if getattr(sampling, "logprob_token_ids", None):
            self._sampling.logprob_token_ids = None

    def positions(self, fed: Fed, drafts: list[list[int]]) -> Positions:
        """Return the positions of a pass's rows, by each request's chain so far."""
        rows = [
            (request, place + row, [*self._new_tokens[request], *drafts[request], *tokens[1 : row + 1]])
            for request, tokens, place in zip(fed.requests, fed.tokens, fed.places, strict=True)
            for row in range(len(tokens))
        ]
        return Positions.of(rows, self._outputs, len(drafts))

    def draw(self, positions: Positions, logits: torch.Tensor) -> torch.Tensor:
        """Draw one token per position, int64 [rows], by the drafter's logits [rows, vocab]; they may be written to.

        Raises:
            FloatingPointError: A logit is not a number.
        """
        if logits.amax(dim=-1).isnan().any():
            raise FloatingPointError("the drafter's logits are not numbers")
        with self._noise_sampler.at(positions, self._streams):
            return self._sampler(logits, metadata_at(self._sampling, positions)).sampled_token_ids[:, 0].long()
