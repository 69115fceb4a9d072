"""What one engine tick turned out to be: the feedback a rule learns from, and what the statistics count of it."""

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class DraftCounts:
    """Counts what draft passes did.

    Attributes:
        num_passes: Passes of the drafter.
        num_chains_fed: The same, summed over requests: each pass gives a request one draw, and the copies before it.
        num_copies: Copied tokens that passes checked.
        num_copies_kept: Those that were the drafter's own draws, and went into a chain.
    """

    num_passes: int = 0
    num_chains_fed: int = 0
    num_copies: int = 0
    num_copies_kept: int = 0

    def add(self, other: "DraftCounts") -> None:
        """Add another's counts."""
        self.num_passes += other.num_passes
        self.num_chains_fed += other.num_chains_fed
        self.num_copies += other.num_copies
        self.num_copies_kept += other.num_copies_kept


@dataclass(frozen=True, slots=True, kw_only=True)
class TickObservation:
    """Holds one finished tick.

    Attributes:
        num_draft_tokens: k the tick was scheduled with; 0 is plain decoding.
        num_requests: Requests that decoded.
        mean_context_tokens: Their mean context, in tokens, as it was decided on.
        attempts_per_position: How often draft position i was reached, that is, all positions before it were accepted.
        accepted_per_position: How often draft position i was the policy's own draw; same length as
            `attempts_per_position`.
        num_tokens: Tokens emitted by the tick, all requests together.
        seconds: Time between this scheduler update and the previous one; None when it is not known.
        had_prefill: Prompt tokens were computed in the tick, so `seconds` says nothing about decoding.
        drafting: What the drafter did in the tick, for the next one.
    """

    num_draft_tokens: int
    num_requests: int
    mean_context_tokens: float
    attempts_per_position: tuple[int, ...] = ()
    accepted_per_position: tuple[int, ...] = ()
    num_tokens: int = 0
    seconds: float | None = None
    had_prefill: bool = False
    drafting: DraftCounts | None = None


@dataclass(slots=True, kw_only=True)
class SpeedupSums:
    """Holds predicted against measured speed-up of ticks that drafted, as sums: they add up over ticks and engines.

    A speed-up is the time plain decoding would have taken for the same tokens over the time drafting took. Both use
    the same estimate of a plain tick: the profile's, corrected by the ticks measured so far.

    Attributes:
        predicted_plain_seconds: Plain decoding, for the tokens that were expected.
        predicted_tick_seconds: Drafting, as predicted just before each tick's own seconds were learned from.
        measured_plain_seconds: Plain decoding, for the tokens that were emitted.
        measured_tick_seconds: Drafting, by the clock.
    """

    predicted_plain_seconds: float = 0.0
    predicted_tick_seconds: float = 0.0
    measured_plain_seconds: float = 0.0
    measured_tick_seconds: float = 0.0


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
