"""Draw draft tokens from logits that went through what the policy's own go through, so that they are accepted.

Rejection sampling is exact for any draft distribution; one that ignores a request's allowed tokens or penalties is only
rejected nearly always.
"""

from dataclasses import replace

import torch
from vllm.v1.sample.logits_processor import LogitsProcessors, MinTokensLogitsProcessor
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.sampler import Sampler

_GREEDY_TEMPERATURE = 1e-5  # vLLM's own bound between greedy and random requests


class DraftSampler:
    """Draws the tokens of one chain, position after position.

    Args:
        sampler: The runner's, which processes logits.
        sampling: Of the batch, as it was when the newest tokens were sampled.
        newest: int64 [num_requests], the tokens the chain starts from.
        num_new: int64 [num_requests], tokens of each request that `sampling` does not know yet: accepted drafts, and
            the newest.
        noise: For requests without a seed.
    """

    def __init__(
        self,
        sampler: Sampler,
        sampling: SamplingMetadata,
        newest: torch.Tensor,
        num_new: torch.Tensor,
        noise: torch.Generator,
    ) -> None:
        self._sampler, self._sampling, self._noise = sampler, sampling, noise
        self._outputs = _outputs(sampling, newest, num_new)
        # Other processors than this one concern requests that are not drafted for.
        min_tokens = [p for p in sampling.logitsprocs.non_argmax_invariant if isinstance(p, MinTokensLogitsProcessor)]
        self._needs_processing = (
            bool(self._outputs)
            or sampling.allowed_token_ids_mask is not None
            or any(processor.min_toks for processor in min_tokens)
        )
        if self._needs_processing:
            self._processing = replace(
                sampling,
                output_token_ids=self._outputs,
                spec_token_ids=None,
                logitsprocs=LogitsProcessors(min_tokens),
                thinking_budget_state_holder=None,
            )

    def draw(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw one draft per request.

        Greedy requests take the largest processed logit. The others follow the request's temperature, top-k and top-p,
        and its own generator where it has a seed.

        Args:
            logits: [num_requests, vocab], of the drafter; may be written to.

        Returns:
            The tokens, int64 [num_requests], and the distribution they were drawn from, float32 [num_requests, vocab];
            the processed logits in its place where every request is greedy.

        Raises:
            FloatingPointError: A logit is not a number.
        """
        logits = logits.float()
        if self._needs_processing:
            logits = self._sampler.apply_logits_processors(logits, self._processing, predict_bonus_token=False)
        tokens, probabilities = self._draw(logits)
        if self._outputs:
            for output, token in zip(self._outputs, tokens.tolist(), strict=True):
                output.append(token)
        return tokens, probabilities

    def _draw(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sampling = self._sampling
        largest, greedy_tokens = logits.max(dim=-1)
        if largest.isnan().any():
            raise FloatingPointError("the drafter's logits are not numbers")
        if sampling.all_greedy:
            return greedy_tokens, logits
        temperature = sampling.temperature
        assert temperature is not None
        is_greedy = temperature < _GREEDY_TEMPERATURE
        logits = logits / torch.where(is_greedy, 1.0, temperature).unsqueeze(1)
        logits = apply_top_k_top_p(logits, sampling.top_k, sampling.top_p)
        probabilities = logits.softmax(dim=-1, dtype=torch.float32)
        # The largest of p / e with e exponentially distributed is a draw from p.
        noise = torch.empty_like(probabilities).exponential_(generator=self._noise)
        for row, generator in sampling.generators.items():
            noise[row].exponential_(generator=generator)
        random_tokens = (probabilities / noise).argmax(dim=-1)
        return torch.where(is_greedy, greedy_tokens, random_tokens), probabilities


def _outputs(sampling: SamplingMetadata, newest: torch.Tensor, num_new: torch.Tensor) -> list[list[int]]:
    """Each request's tokens so far, where a penalty or bad words ask for them; else none."""
    if sampling.no_penalties and not sampling.bad_words_token_ids:
        return []
    # The runner keeps more lists than requests until the first request has ended.
    num_requests = len(sampling.output_token_ids)
    drafts = sampling.spec_token_ids[:num_requests] if sampling.spec_token_ids else [[]] * num_requests
    return [
        [*known, *of_request[: new - 1], token]
        for known, of_request, new, token in zip(
            sampling.output_token_ids, drafts, num_new.tolist(), newest.tolist(), strict=True
        )
    ]
