"""The controller's scheduler where the next tick is scheduled before the last one's result is known."""

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.outputs import DraftTokenIds

from efficient_rollout.engine.scheduler import Controlled


class AsyncEfficientScheduler(Controlled, AsyncScheduler):
    """For vLLM's V2 model runner, with asynchronous scheduling on or off."""

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        """Stock, where scheduling is not asynchronous: that runner tells of the largest number, whatever was asked."""
        for drafts in draft_token_ids.draft_token_ids:
            del drafts[self.num_drafts_asked :]
        super().update_draft_token_ids(draft_token_ids)
