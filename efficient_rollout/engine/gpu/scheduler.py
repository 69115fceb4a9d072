"""The controller's scheduler where the next tick is scheduled before the last one's result is known."""

from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.request import Request

from efficient_rollout.engine.scheduler import Controlled

# What changes logits between the policy and a draw, and that a draft step does not do: it follows the temperature.
_UNFOLLOWED = (
    "allowed_token_ids", "bad_words", "frequency_penalty", "logit_bias", "min_p", "min_tokens", "presence_penalty",
    "repetition_penalty", "top_k", "top_p",
)  # fmt: skip
_PLAIN = SamplingParams()


class AsyncEfficientScheduler(Controlled, AsyncScheduler):
    """For vLLM's V2 model runner, with asynchronous scheduling on or off."""

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        """Stock, where scheduling is not asynchronous: that runner tells of the largest number, whatever was asked."""
        for drafts in draft_token_ids.draft_token_ids:
            del drafts[self.num_drafts_asked :]
        super().update_draft_token_ids(draft_token_ids)

    def tells_of_the_drafter(self, request: Request) -> bool:
        """Whether a draft step follows the request's sampling: drafts of others are rejected for that alone."""
        return super().tells_of_the_drafter(request) and follows(request.sampling_params)


def follows(parameters: SamplingParams) -> bool:
    """Whether a draft step draws as these parameters say: whatever the temperature, with nothing else set."""
    # A greedy request's truncation is nobody's; vLLM takes it away itself.
    return all((getattr(parameters, name) or 0) == (getattr(_PLAIN, name) or 0) for name in _UNFOLLOWED)
