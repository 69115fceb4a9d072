"""The bookkeeping of one engine's ticks: what was decided, what was verified, what is learned from it."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from efficient_rollout.controller.drafter_health import DrafterHealth, DrafterReport
from efficient_rollout.controller.observation import (
    DraftCounts,
    FinishedTick,
    TickObservation,
    TickSpan,
    VerifiedDrafts,
)
from efficient_rollout.controller.rule import Rule
from efficient_rollout.controller.state import Decision, DecodeState


@dataclass(frozen=True, slots=True, kw_only=True)
class TickResult:
    """Says what a tick did, as the engine tells it.

    Attributes:
        num_requests: Requests that had tokens computed.
        num_computed_tokens: Those tokens: of prompts, the newest of each decoding request, and drafts.
        num_emitted_tokens: Tokens that requests got.
        verified: The drafts that were verified.
        num_drafted: Draft tokens per request that the worker drafted at its end, for the tick after it.
        drafting: What the drafter did for that; None where it is not told.
        goes_on: Whether the engine has requests left.
    """

    num_requests: int
    num_computed_tokens: int
    num_emitted_tokens: int
    verified: VerifiedDrafts
    num_drafted: int
    goes_on: bool
    drafting: DraftCounts | None = None


class TickBook:
    """Holds one engine's rule, the health of its drafter, and the clock between ticks.

    An engine that schedules asynchronously begins a tick before the one before it is finished; ticks finish in the
    order they began in.

    Args:
        rule: Decides where the drafter may draft, and learns from every tick.
        health: Of the drafter.
        clock: Seconds that never run backwards.
    """

    def __init__(self, rule: Rule, health: DrafterHealth, clock: Callable[[], float] = time.perf_counter) -> None:
        self.rule, self.health, self._clock = rule, health, clock
        # Of each tick that has not finished, its decision, and the mean context that was decided on.
        self._begun: deque[tuple[Decision, float]] = deque()
        self._last_finish: float | None = None

    @property
    def decision(self) -> Decision:
        """Return that of the tick that began last."""
        return self._begun[-1][0]

    def begin(self) -> None:
        """Begin a tick; unless something decides in it, it is idle."""
        self._begun.append((Decision(0, "idle"), 0.0))

    def decide(self, state: DecodeState) -> Decision:
        """Draft tokens per request to ask the worker for at the end of this tick."""
        why_not = "unwanted" if state.max_draft_tokens == 0 else self.health.why_not()
        decision = self.rule.decide(state) if why_not is None else Decision(0, why_not)
        self._begun[-1] = decision, state.mean_context_tokens
        return decision

    def hear(self, report: DrafterReport) -> None:
        """Take the worker's word, before the tick it came with is finished."""
        if self.health.take_report(report):
            self.rule.mark_stale()

    def leave_out(self) -> None:
        """Leave the first tick that has not finished out: it computed nothing."""
        self._begun.popleft()

    def finish(self, result: TickResult) -> FinishedTick:
        """Show the first tick that has not finished to the rule, and sum it up."""
        decision, mean_context_tokens = self._begun.popleft()
        now = self._clock()
        # From finish to finish, so that nothing between two ticks is free; not across an idle engine.
        seconds = None if self._last_finish is None else now - self._last_finish
        self._last_finish = now if result.goes_on else None
        k, verified = decision.num_draft_tokens, result.verified
        # A chain that requests near their end cut short says nothing about the length that was asked for.
        is_cut = result.num_drafted < k
        self.rule.observe(
            TickObservation(
                num_draft_tokens=k,
                num_requests=result.num_requests,
                mean_context_tokens=mean_context_tokens,
                attempts_per_position=tuple(verified.judged),
                accepted_per_position=tuple(verified.stood),
                num_tokens=result.num_emitted_tokens,
                seconds=None if is_cut else seconds,
                drafting=result.drafting,
                had_prefill=result.num_computed_tokens != result.num_requests + sum(verified.drafted),
            )
        )
        span = None
        if seconds is not None:
            span = TickSpan(end_s=now, seconds=seconds, num_requests=result.num_requests, num_draft_tokens=k)
        return FinishedTick(
            reason=decision.reason,
            num_emitted_tokens=result.num_emitted_tokens,
            verified=verified,
            speedup=self.rule.take_speedup(),
            is_drafter_stale=self.health.is_stale,
            span=span,
        )
