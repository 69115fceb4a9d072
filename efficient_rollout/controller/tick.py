"""The bookkeeping of one engine's ticks: what was decided, what was verified, what is learned from it."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from efficient_rollout.controller.drafter_health import DrafterHealth, DrafterReport
from efficient_rollout.controller.observation import DraftCounts, SpeedupSums, TickObservation
from efficient_rollout.controller.rule import Rule
from efficient_rollout.controller.state import Decision, DecodeState


@dataclass(slots=True)
class VerifiedDrafts:
    """Holds what one tick verified, by draft position, first draft token first.

    Attributes:
        num_passes: Requests that had at least one draft token verified.
        drafted: Draft tokens at each position.
        judged: Those reached: all drafts before them were the policy's own draws.
        stood: Those that were the policy's own draws, behind a response's end too: what a drafter is judged by.
        accepted: Those that a request gained: it got so many tokens more than plain decoding gives in a tick.
    """

    num_passes: int = 0
    drafted: list[int] = field(default_factory=list)
    judged: list[int] = field(default_factory=list)
    stood: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def add(self, num_draft_tokens: int, *, num_sampled_tokens: int, num_emitted_tokens: int) -> None:
        """Count one request's verify pass.

        Args:
            num_draft_tokens: Its drafts.
            num_sampled_tokens: The drafts that stood, and the token behind them.
            num_emitted_tokens: Those that the request got: fewer where its response ended among them.
        """
        self.num_passes += 1
        missing = max(0, num_draft_tokens - len(self.drafted))
        for counts in (self.drafted, self.judged, self.stood, self.accepted):
            counts += [0] * missing
        for position in range(num_draft_tokens):
            self.drafted[position] += 1
            self.judged[position] += position < num_sampled_tokens
            self.stood[position] += position < num_sampled_tokens - 1
            self.accepted[position] += position < num_emitted_tokens - 1


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TickSpan:
    """Says when one tick ran, and with what.

    Attributes:
        end_s: Its end, by a clock that never runs backwards.
        seconds: From the finish of the tick before it to its own.
        num_requests: Requests that had tokens computed.
        num_draft_tokens: k it was scheduled with; 0 is plain decoding.
    """

    end_s: float
    seconds: float
    num_requests: int
    num_draft_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedTick:
    """Says what a tick adds to the statistics.

    Attributes:
        reason: Of the decision that was made in it.
        num_emitted_tokens: Tokens that requests got.
        verified: The drafts that were verified.
        speedup: What the rule predicted and measured since the last tick; None from one that predicts nothing.
        is_drafter_stale: Acceptance shows that the drafter does not follow the policy.
        span: When it ran; None for the first tick after an idle engine, whose beginning is not known.
    """

    reason: str
    num_emitted_tokens: int
    verified: VerifiedDrafts
    speedup: SpeedupSums | None
    is_drafter_stale: bool
    span: TickSpan | None = None


@dataclass(slots=True)
class _Begun:
    """Holds a tick that has begun, and not finished."""

    decision: Decision
    mean_context_tokens: float = 0.0


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
        self._begun: deque[_Begun] = deque()
        self._last_finish: float | None = None

    @property
    def decision(self) -> Decision:
        """Return that of the tick that began last."""
        return self._begun[-1].decision

    def begin(self) -> None:
        """Begin a tick; unless something decides in it, it is idle."""
        self._begun.append(_Begun(Decision(0, "idle")))

    def decide(self, state: DecodeState) -> Decision:
        """Draft tokens per request to ask the worker for at the end of this tick."""
        why_not = "unwanted" if state.max_draft_tokens == 0 else self.health.why_not()
        decision = self.rule.decide(state) if why_not is None else Decision(0, why_not)
        self._begun[-1] = _Begun(decision, state.mean_context_tokens)
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
        begun = self._begun.popleft()
        now = self._clock()
        # From finish to finish, so that nothing between two ticks is free; not across an idle engine.
        seconds = None if self._last_finish is None else now - self._last_finish
        self._last_finish = now if result.goes_on else None
        self.rule.observe(self._observation(begun, result, seconds))
        return FinishedTick(
            reason=begun.decision.reason,
            num_emitted_tokens=result.num_emitted_tokens,
            verified=result.verified,
            speedup=self.rule.take_speedup(),
            is_drafter_stale=self.health.is_stale,
            span=None
            if seconds is None
            else TickSpan(
                end_s=now,
                seconds=seconds,
                num_requests=result.num_requests,
                num_draft_tokens=begun.decision.num_draft_tokens,
            ),
        )

    def _observation(self, begun: _Begun, result: TickResult, seconds: float | None) -> TickObservation:
        verified = result.verified
        # A chain that requests near their end cut short says nothing about the length that was asked for.
        is_cut = result.num_drafted < begun.decision.num_draft_tokens
        return TickObservation(
            num_draft_tokens=begun.decision.num_draft_tokens,
            num_requests=result.num_requests,
            mean_context_tokens=begun.mean_context_tokens,
            attempts_per_position=tuple(verified.judged),
            accepted_per_position=tuple(verified.stood),
            num_tokens=result.num_emitted_tokens,
            seconds=None if is_cut else seconds,
            drafting=result.drafting,
            had_prefill=result.num_computed_tokens != result.num_requests + sum(verified.drafted),
        )
