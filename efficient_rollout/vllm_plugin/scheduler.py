"""Ask the controller for the number of draft tokens at every engine tick, and count what came of it."""

import time
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request

from efficient_rollout.controller.observation import TickObservation
from efficient_rollout.controller.state import Decision, DecodeState
from efficient_rollout.metrics.rollout_stats import RolloutStats
from efficient_rollout.vllm_plugin.draft_plan import drafts_left
from efficient_rollout.vllm_plugin.engine_args import settings_of
from efficient_rollout.vllm_plugin.rules import rule_from
from efficient_rollout.vllm_plugin.staleness import StalenessWatch

# Where statistics ride from the scheduler to the worker, which may be another process.
STATS_ATTRIBUTE = "efficient_rollout_stats"
_TICKS_PER_REPORT = 32


@dataclass(slots=True)
class VerifiedDrafts:
    """What one tick verified, by draft position: how often a position was reached, and how often accepted."""

    attempts: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def add(self, num_draft_tokens: int, num_accepted_tokens: int) -> None:
        """Count one request: drafts up to the first rejected one were judged."""
        missing = max(0, num_draft_tokens - len(self.attempts))
        self.attempts += [0] * missing
        self.accepted += [0] * missing
        for position in range(min(num_accepted_tokens + 1, num_draft_tokens)):
            self.attempts[position] += 1
            self.accepted[position] += position < num_accepted_tokens


def _useful_drafts(request: Request) -> int:
    """Drafts that a request may still emit before its `max_tokens`."""
    return drafts_left(request.max_tokens - request.num_output_tokens)


class _Decide:
    """Stands where stock keeps its table by batch size: `schedule()` indexes it once per tick."""

    def __init__(self, scheduler: "EfficientScheduler") -> None:
        self._scheduler = scheduler

    def __getitem__(self, num_scheduled_requests: int) -> int:
        return self._scheduler.decide(num_scheduled_requests)


class EfficientScheduler(Scheduler):
    """Stock scheduling; only the number of draft tokens is the controller's.

    The number asked for at one tick is drafted at the end of it and verified at the next.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = settings_of(self.vllm_config)
        self._rule = rule_from(settings, self.vllm_config.model_config.model)
        self._max_draft_tokens = settings.controller.max_draft_tokens
        self._staleness = StalenessWatch()
        self._drafter_failed = False
        self._decision = Decision(0, "idle")
        self._stats = RolloutStats()
        self._verified = VerifiedDrafts()
        self._last_update: float | None = None
        self.dynamic_sd_lookup = _Decide(self)

    def decide(self, num_scheduled_requests: int) -> int:
        """Draft tokens per request to ask the worker for at this tick."""
        state = self._state(num_scheduled_requests)
        if self._drafter_failed:
            self._decision = Decision(0, "drafter_fault")
        elif self._staleness.is_stale:
            self._decision = Decision(0, "drafter_stale")
        else:
            self._decision = self._rule.decide(state)
        return self._decision.num_draft_tokens

    def _state(self, num_scheduled_requests: int) -> DecodeState:
        running = self.running
        num_tokens = sum(request.num_tokens for request in running)
        self._mean_context_tokens = num_tokens / len(running) if running else 0.0
        return DecodeState(
            num_running_requests=num_scheduled_requests,
            num_waiting_requests=len(self.waiting),
            num_prefill_tokens=sum(max(0, r.num_prompt_tokens - r.num_computed_tokens) for r in running),
            mean_context_tokens=self._mean_context_tokens,
            max_draft_tokens=self._max_draft_tokens,
        )

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Stock, with the statistics of the ticks since the last report riding along now and then."""
        started = time.perf_counter()
        self._decision = Decision(0, "idle")
        output = super().schedule(*args, **kwargs)
        if self._stats.num_ticks >= _TICKS_PER_REPORT or not self.has_unfinished_requests():
            setattr(output, STATS_ATTRIBUTE, self._stats)
            self._stats = RolloutStats()
        self._tick_started = started
        return output

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        """Stock, with what was verified and what was emitted counted, and shown to the rule."""
        # Before stock: it cuts the lists of sampled tokens at a request's end.
        self._count_verified(scheduler_output, model_runner_output)
        core_outputs = super().update_from_output(scheduler_output, model_runner_output)
        if scheduler_output.total_num_scheduled_tokens:
            num_tokens = sum(len(r.new_token_ids) for outputs in core_outputs.values() for r in outputs.outputs)
            self._count_tick(num_tokens)
            self._rule.observe(self._observation(scheduler_output, num_tokens))
            self._stats.add_speedup(self._rule.take_speedup())
        return core_outputs

    def _count_verified(self, scheduled: SchedulerOutput, output: ModelRunnerOutput) -> None:
        drafts = scheduled.scheduled_spec_decode_tokens
        self._stats.num_speculative_ticks += bool(drafts)
        self._verified = VerifiedDrafts()
        for request_id, draft_tokens in drafts.items():
            sampled = output.sampled_token_ids[output.req_id_to_index[request_id]]
            if sampled:
                self._stats.observe_verify(len(draft_tokens), len(sampled) - 1)
                self._verified.add(len(draft_tokens), len(sampled) - 1)
                self._staleness.observe(first_draft_accepted=len(sampled) > 1)

    def _count_tick(self, num_tokens: int) -> None:
        stats, reason = self._stats, self._decision.reason
        stats.num_ticks += 1
        stats.busy_seconds += time.perf_counter() - self._tick_started
        stats.ticks_by_reason[reason] = stats.ticks_by_reason.get(reason, 0) + 1
        stats.num_generated_tokens += num_tokens
        stats.num_stale_drafters = int(self._staleness.is_stale)

    def _observation(self, scheduled: SchedulerOutput, num_tokens: int) -> TickObservation:
        now = time.perf_counter()
        # A chain that requests near their end cut short says nothing about the length that was asked for.
        is_cut = self._decision.num_draft_tokens > max(map(_useful_drafts, self.running), default=0)
        # From update to update, so that nothing between two ticks is free; not across an idle engine.
        seconds = None if self._last_update is None or is_cut else now - self._last_update
        self._last_update = now if self.has_unfinished_requests() else None
        num_requests = len(scheduled.num_scheduled_tokens)
        num_drafts = sum(len(tokens) for tokens in scheduled.scheduled_spec_decode_tokens.values())
        return TickObservation(
            num_draft_tokens=self._decision.num_draft_tokens,
            num_requests=num_requests,
            mean_context_tokens=self._mean_context_tokens,
            attempts_per_position=tuple(self._verified.attempts),
            accepted_per_position=tuple(self._verified.accepted),
            num_tokens=num_tokens,
            seconds=seconds,
            had_prefill=scheduled.total_num_scheduled_tokens != num_requests + num_drafts,
        )

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        """Stock, with no request given more drafts than it may emit before its `max_tokens`.

        A worker that drafts nothing when asked has turned its drafter off.
        """
        drafts = draft_token_ids.draft_token_ids
        requests = [self.requests.get(request_id) for request_id in draft_token_ids.req_ids]
        useful = [0 if request is None else _useful_drafts(request) for request in requests]
        if self._decision.num_draft_tokens and any(useful) and not any(drafts):
            self._drafter_failed = True
        for of_request, most in zip(drafts, useful, strict=True):
            del of_request[most:]
        super().update_draft_token_ids(draft_token_ids)

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Stock; called after every weight sync, when old KV and old acceptance both mean nothing."""
        self._staleness.reset()
        self._rule.mark_stale()
        self._drafter_failed = False
        return super().reset_prefix_cache(*args, **kwargs)
