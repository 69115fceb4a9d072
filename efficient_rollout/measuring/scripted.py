"""Schedulers for probing and benchmarking: requests say how their ticks are decided.

Products and training jobs use the schedulers that these begin with; only `calibrate`, `bench` and `gpu-check` name
these.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

from efficient_rollout.controller.rule import PATTERN, Never, Rule, RuleInputs, Script, make_rule
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.cost_model.profile import load_profile
from efficient_rollout.engine.scheduler import AsyncEfficientScheduler, EfficientScheduler

# Keys of a request's `extra_args`, beside `PATTERN`. The oldest running request decides for the batch.
RULE, RUN = "rule", "run"  # a rule's name, and a number that is new for each rollout
PREFILLED = "prefilled"  # true: the prompt's KV is taken as computed, whatever is in it


class Scripted:
    """Stands before one of this package's schedulers among the bases: a script decides, or a rule that can be changed.

    A rule keeps its memory from one rollout to the next and is told of a weight sync in between, as in training.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._script = Script()
        self._rules: dict[str, Rule] = {}
        self._run: int | None = None

    def decide(self, num_scheduled_requests: int) -> int:
        """Decide as the oldest running request asks."""
        wanted = (self.running[0].sampling_params.extra_args or {}) if self.running else {}
        if PATTERN in wanted:
            # Nothing is concluded from acceptance: weights may be random or wrong, and only latencies asked for.
            self._book.health.forget()
            self._script.pattern = wanted[PATTERN]
            self._book.rule = self._script
        else:
            self._follow(wanted)
        return super().decide(num_scheduled_requests)

    def _follow(self, wanted: dict[str, Any]) -> None:
        if RULE not in wanted or wanted[RUN] == self._run:
            return
        self._run, name = wanted[RUN], wanted[RULE]
        if name in self._rules:
            self._rules[name].mark_stale()
        else:
            self._rules[name] = make_rule(name, self._rule_inputs)
        self._book.rule = self._rules[name]

    @cached_property
    def _rule_inputs(self) -> RuleInputs:
        controller, table = self._record.settings.controller, None
        if controller.profile is not None:
            table = TickTable(load_profile(Path(controller.profile)).model, controller.max_draft_tokens)
        return RuleInputs(max_draft_tokens=controller.max_draft_tokens, table=table)

    def add_request(self, request: Any) -> None:
        """Add it as stock does; a `prefilled` prompt as one whose KV came from elsewhere, all but its last token."""
        super().add_request(request)
        num_known = request.num_prompt_tokens - 1
        if num_known > 0 and request.sampling_params and (request.sampling_params.extra_args or {}).get(PREFILLED):
            blocks = self.kv_cache_manager.allocate_slots(request, num_known, delay_cache_blocks=True)
            assert blocks is not None, "the KV cache cannot hold the context to be timed"
            request.num_computed_tokens = num_known

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Run stock, between rollouts; the rule of the last one is told when its own next one starts."""
        self._book.rule = Never()
        return super().reset_prefix_cache(*args, **kwargs)


class ScriptedScheduler(Scripted, EfficientScheduler):
    """Serves measured engines on a CPU."""


class AsyncScriptedScheduler(Scripted, AsyncEfficientScheduler):
    """Serves measured engines on a GPU."""
