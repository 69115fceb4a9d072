"""Draw draft tokens as the verifier will: the same processing, and the noise of the position they are drafted for."""

from dataclasses import replace

import torch
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from efficient_rollout.engine.cpu.noise_sampler import NoiseSampler
from efficient_rollout.engine.cpu.positions import Positions, metadata_at


class DraftSampler:
    """Draws the tokens of one chain, position after position.

    Args:
        sampler: The runner's, whose last operation is `noise_sampler`.
        noise_sampler: Of the same engine.
        sampling: Of the batch, as it was when the newest tokens were sampled.
        new_tokens: Of each request, those that `sampling` does not know yet: accepted drafts, and the newest. The
            chain's are added.
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
        self._sampler, self._noise_sampler, self._new_tokens = sampler, noise_sampler, new_tokens
        self._streams = noise_sampler.noise.streams(len(new_tokens))
        self._step = 0
        self._positions = Positions.one_each(new_tokens, outputs)
        self._sampling = replace(sampling, max_num_logprobs=None)
        if getattr(sampling, "logprob_token_ids", None):
            self._sampling.logprob_token_ids = None

    def draw(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw one draft per request.

        Args:
            logits: [num_requests, vocab], of the drafter; may be written to.

        Returns:
            int64 [num_requests].

        Raises:
            FloatingPointError: A logit is not a number.
        """
        if logits.amax(dim=-1).isnan().any():
            raise FloatingPointError("the drafter's logits are not numbers")
        metadata = metadata_at(self._sampling, self._positions)
        with self._noise_sampler.rows(self._streams, [self._step] * len(self._streams)):
            tokens = self._sampler(logits, metadata).sampled_token_ids[:, 0].long()
        self._step += 1
        for new, token in zip(self._new_tokens, tokens.tolist(), strict=True):
            new.append(token)
        return tokens
