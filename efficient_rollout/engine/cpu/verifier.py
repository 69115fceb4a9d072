"""Verify drafts by sampling: every emitted token is the policy's own draw, whatever was drafted.

At each position of a chain the policy samples with the noise that belongs to it, exactly as without speculation. Drafts
stand while they are what it sampled; behind the first that is not, the tokens before a position are others than were
assumed, and what was sampled there is thrown away.
"""

from typing import Any

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import PLACEHOLDER_TOKEN_ID
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from efficient_rollout.engine.cpu.noise_sampler import NoiseSampler
from efficient_rollout.engine.cpu.positions import Positions, metadata_at


class Verifier(torch.nn.Module):
    """In the place of the runner's rejection sampler.

    Args:
        sampler: The runner's, whose last operation is `noise_sampler`.
        noise_sampler: Of the same engine.
        runner: Whose batch it is.
    """

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
            sampling_metadata: Of the batch.

        Returns:
            Tokens int32 [requests, most drafts + 1], with stock's placeholder behind the last of each request; and
            log-probabilities of as many rows, where asked for.
        """
        counts = metadata.num_draft_tokens
        drafts = [part.tolist() for part in metadata.draft_token_ids.split(counts)]
        outputs = self._runner.input_batch.req_output_token_ids
        positions = Positions.of_drafts(drafts, outputs)
        streams = self._noise_sampler.noise.streams(len(counts))
        with self._noise_sampler.rows([streams[request] for request in positions.requests], positions.steps):
            sampled = self.sampler(logits, metadata_at(sampling_metadata, positions))
        tokens, num_emitted, sources = _emitted(sampled.sampled_token_ids[:, 0].numpy(), drafts)
        self._noise_sampler.noise.advance(streams, num_emitted.tolist())
        return SamplerOutput(torch.from_numpy(tokens), _rows_of(sampled.logprobs_tensors, sources))


def _emitted(sampled: np.ndarray, drafts: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What stands of each request's samples.

    Args:
        sampled: int32 [drafts + requests].
        drafts: Of each request.

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
