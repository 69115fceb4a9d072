"""The product's scheduler, with the number of drafts taken from what a request asks for."""

from typing import Any

from efficient_rollout.controller.rule import Unlearning
from efficient_rollout.controller.state import Decision, DecodeState
from efficient_rollout.vllm_plugin.v2.scheduler import AsyncEfficientScheduler

# Key of a request's `extra_args`: a list; tick i drafts entry i, cyclically. The oldest running request decides.
PATTERN = "draft_tokens_per_tick"


class ScriptedScheduler(AsyncEfficientScheduler):
    """Follows the oldest running request's pattern; without one it drafts nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._script = _Script()
        self._book.rule = self._script

    def decide(self, num_scheduled_requests: int) -> int:
        """As the script says."""
        # Nothing is concluded from acceptance: some drafters are wrong on purpose.
        self._book.health.forget()
        if self.running:
            parameters = self.running[0].sampling_params
            wanted = (parameters and parameters.extra_args) or {}
            self._script.pattern = wanted.get(PATTERN, [0])
        return super().decide(num_scheduled_requests)


class _Script(Unlearning):
    def __init__(self) -> None:
        self.pattern: list[int] = [0]
        self._num_decided = 0

    def decide(self, state: DecodeState) -> Decision:
        self._num_decided += 1
        wanted = self.pattern[self._num_decided % len(self.pattern)]
        return Decision(min(wanted, state.max_draft_tokens), "scripted")
