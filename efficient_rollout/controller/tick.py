"""The bookkeeping of one engine's ticks: what was decided, what was verified, what is learned from it, what is counted.

It also keeps whether the engine may draft at all: what its worker reports of the drafter, and what acceptance shows.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from efficient_rollout.controller.rule import Decision, DecodeState, DraftCounts, Rule, SpeedupSums, TickObservation

logger = logging.getLogger(__name__)

_WINDOW_DRAFTS = 256
# A quantized copy of the policy has its first draft accepted in well over half of the cases, at any temperature.
# Unrelated weights over a vocabulary of more than a few tokens stay far below.
_SMALLEST_ACCEPTANCE = 0.25


@dataclass(frozen=True, slots=True)
class DrafterReport:
    """Says how a worker's weights and its drafter are.

    Attributes:
        weights_version: Weight syncs that were completed since the engine started.
        weights_fault: Why the weights in the engine are no policy's; None while they are.
        drafter_fault: Why the drafter is off; None while it works.
    """

    weights_version: int = 0
    weights_fault: str | None = None
    drafter_fault: str | None = None

    @classmethod
    def of_all(cls, reports: Sequence["DrafterReport"]) -> "DrafterReport":
        """Return one report of an engine whose ranks hold a part of the policy each, in order of their ranks.

        It has a fault that one of them has, and new weights once all of them have.
        """

        def first(faults: Sequence[str | None]) -> str | None:
            found = [(rank, fault) for rank, fault in enumerate(faults) if fault is not None]
            return next((f"on rank {rank}: {fault}" if rank else fault for rank, fault in found), None)

        return cls(
            min(report.weights_version for report in reports),
            first([report.weights_fault for report in reports]),
            first([report.drafter_fault for report in reports]),
        )


class DrafterHealth:
    """Keeps the last report, and the acceptance of first drafts, in windows, since the weights it speaks of arrived.

    Attributes:
        is_stale: Acceptance has shown that the drafter does not follow the policy; so until new weights arrive.
    """

    def __init__(self) -> None:
        self._report = DrafterReport()
        self.forget()

    def forget(self) -> None:
        """Forget what was accepted so far: it says nothing of what comes."""
        self.is_stale = False
        self._num_judged = self._num_accepted = 0

    def why_not(self) -> str | None:
        """Return the reason not to draft, as it stands in the metrics; None where drafting may go on."""
        if self._report.drafter_fault is not None:
            return "drafter_fault"
        return "drafter_stale" if self.is_stale else None

    def take_report(self, report: DrafterReport) -> bool:
        """Believe the worker; tell whether it has other weights than before: what was known is then forgotten."""
        has_new_weights, self._report = report.weights_version != self._report.weights_version, report
        if has_new_weights:
            self.forget()
        return has_new_weights

    def observe_first_drafts(self, num_judged: int, num_accepted: int) -> None:
        """Count one tick's first drafts of requests whose sampling the drafter follows in every respect."""
        self._num_judged += num_judged
        self._num_accepted += num_accepted
        if self._num_judged < _WINDOW_DRAFTS:
            return
        share, num_judged = self._num_accepted / self._num_judged, self._num_judged
        self._num_judged = self._num_accepted = 0
        if share < _SMALLEST_ACCEPTANCE and not self.is_stale:
            self.is_stale = True
            logger.error(
                "the drafter does not follow the policy: %.0f%% of the last %d first drafts were accepted. Its weights "
                "are stale or damaged; drafting is off in this engine until the next weight sync.",
                100 * share,
                num_judged,
            )


@dataclass(slots=True)
class VerifiedDrafts:
    """Holds what one tick verified, by draft position, and in how many requests.

    Attributes:
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
        """Count one request's verify pass, which sampled the drafts that stood and the token behind them.

        The request got fewer where its response ended among them.
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
class TickSpan:
    """Says when one tick ended, how many seconds after the one before it, and with what it ran."""

    end_s: float  # by a clock that never runs backwards
    seconds: float
    num_requests: int
    num_draft_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedTick:
    """Says what a tick adds to the statistics.

    Attributes:
        reason: Of the decision that was made in it.
        speedup: What the rule predicted and measured since the last tick; None from one that predicts nothing.
        span: None for the first tick after an idle engine, whose beginning is not known.
    """

    reason: str
    num_emitted_tokens: int
    verified: VerifiedDrafts
    speedup: SpeedupSums | None
    is_drafter_stale: bool
    span: TickSpan | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TickResult:
    """Says what a tick did, as the engine tells it.

    Attributes:
        num_requests: Requests that had tokens computed.
        num_computed_tokens: Those tokens: of prompts, the newest of each decoding request, and drafts.
        num_emitted_tokens: Tokens that requests got.
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
    """Holds one engine's rule, the health of its drafter, and a clock that never runs backwards.

    An engine that schedules asynchronously begins a tick before the one before it is finished; ticks finish in the
    order they began in.
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
        self.rule.observe(
            TickObservation(
                num_draft_tokens=k,
                num_requests=result.num_requests,
                mean_context_tokens=mean_context_tokens,
                attempts_per_position=tuple(verified.judged),
                accepted_per_position=tuple(verified.stood),
                num_tokens=result.num_emitted_tokens,
                # A chain that requests near their end cut short says nothing about the length that was asked for.
                seconds=None if result.num_drafted < k else seconds,
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
