"""The product's scheduler, with the number of drafts taken from what a request asks for."""

from typing import Any

from efficient_rollout.controller.script import PATTERN, Script
from efficient_rollout.vllm_plugin.v2.scheduler import AsyncEfficientScheduler


class ScriptedScheduler(AsyncEfficientScheduler):
    """Follows the oldest running request's pattern; without one it drafts nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._script = Script()
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
