"""When to try another number of draft tokens than the best known one, and what trying may cost.

What was timed long ago may have become the better choice, and what was never timed is only predicted. An alternative
is tried for a burst of ticks, within two budgets: a share of the time, as far as a loss can be foreseen, and a share of
the ticks, which are counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from efficient_rollout.cost_model.correction import OnlineCorrection

_PROMISING_RISE = 0.1  # acceptance above the last try's by this much: try again soon
_DIFFERENT_LOG = 0.1  # a tick that moves an estimate by so much (of log seconds): other ones may have changed too
_CREDIT_TICKS = 100.0  # what may be lost before anything was decoded, as a share of so many ticks
_PATIENCE_RANGE = 4  # patience stays within `refresh_ticks` over this and times this


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplorationSettings:
    """How curious the rule is.

    Attributes:
        time_share: At most this share of the time so far is lost by exploring, as far as it can be foreseen.
        tick_share: At most this share of the ticks so far explores, and one burst more.
        min_ticks: Ticks of plain decoding, and of drafting, wanted in each octave of batch before either is trusted.
        refresh_ticks: An alternative is timed again after this many ticks, up to 4 times as many while
            nothing changes.
        burst_ticks: Exploring lasts this many ticks; the first one is not timed, for it still pays for the switch.
        untried_share: A length that was never timed is tried if it promises this share of the best length's rate.
    """

    time_share: float = 0.01
    tick_share: float = 0.02
    min_ticks: int = 3
    refresh_ticks: int = 64
    burst_ticks: int = 3
    untried_share: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is expected of the next tick.

    Attributes:
        batch: Running requests.
        best: The k that would be chosen.
        rates: Tokens per second and request, for k = 0..limit.
        seconds: Of the tick, for k = 0..limit.
        acceptance: Of a draft.
    """

    batch: int
    best: int
    rates: Sequence[float]
    seconds: Sequence[float]
    acceptance: float


@dataclass(slots=True)
class Exploration:
    """Which alternatives are tried, and when.

    Attributes:
        correction: What was timed so far; read, never written.
        max_draft_tokens: Largest k of the rule.
        settings: How curious it is.
    """

    correction: OnlineCorrection
    max_draft_tokens: int
    settings: ExplorationSettings = field(default_factory=ExplorationSettings)
    _ticks: int = 0
    _elapsed_s: float = 0.0
    _explored_ticks: int = 0
    _spent_s: float = 0.0
    _burst_length: int = 0
    _burst_left: int = 0
    _patience: int = field(init=False)
    _last_timed: dict[tuple[bool, int], int] = field(default_factory=dict)
    _last_untried: int = 0
    _acceptance_when_tried: float = 1.0

    def __post_init__(self) -> None:
        self._patience = self.settings.refresh_ticks

    def mark_stale(self) -> None:
        """The weights changed: time alternatives again soon."""
        self._patience = self.settings.refresh_ticks

    def next_tick(self, limit: int) -> int | None:
        """Count a tick; the k of the burst that goes on in it, None without one or where k exceeds `limit`."""
        self._ticks += 1
        if self._burst_left == 0 or self._burst_length > limit:
            return None
        self._burst_left -= 1
        return self._burst_length

    def start_burst(self, outlook: Outlook) -> int | None:
        """Another k than the best one that this tick and the next ones try; None: nothing is to be tried now."""
        k = self._other_kind(outlook)
        if k is None and outlook.best > 0:
            k = self._untried_length(outlook)
        if k is not None:
            self._burst_length, self._burst_left = k, self.settings.burst_ticks - 1
            self._explored_ticks += self.settings.burst_ticks
            self._spent_s += self._loss_s(k, outlook)
        return k

    def elapse(self, seconds: float) -> None:
        """Decoding took so long, as predicted: a clock that jumps must not grant a budget."""
        self._elapsed_s += seconds

    def note_timed(self, num_draft_tokens: int, batch: int, log_change: float) -> None:
        """A tick taught its seconds; `log_change` is by how much that moved their logarithm."""
        self._last_timed[num_draft_tokens > 0, batch.bit_length()] = self._ticks
        if abs(log_change) > _DIFFERENT_LOG:
            self._patience = self.settings.refresh_ticks

    def _other_kind(self, outlook: Outlook) -> int | None:
        """The other kind of tick (plain or drafting), when it was not timed for long and we can afford it."""
        settings, kind = self.settings, (outlook.best == 0, outlook.batch.bit_length())
        lengths = range(1, len(outlook.rates))
        k = 0 if outlook.best > 0 else max(lengths, key=outlook.rates.__getitem__, default=0)
        if k == outlook.best:
            return None
        age = self._ticks - self._last_timed.get(kind, -self._patience)
        known = self._num_timed(outlook)
        if age < (self._patience if known >= settings.min_ticks else settings.burst_ticks * 4):
            return None
        if k > 0 and outlook.acceptance > self._acceptance_when_tried + _PROMISING_RISE:
            self._patience = settings.refresh_ticks // _PATIENCE_RANGE
        if not self._affordable(k, outlook):
            return None
        self._last_timed[kind] = self._ticks
        if k > 0:
            self._acceptance_when_tried = outlook.acceptance
        self._patience = min(2 * self._patience, _PATIENCE_RANGE * settings.refresh_ticks)
        return k

    def _untried_length(self, outlook: Outlook) -> int | None:
        """The most promising k > 0 that was never timed near this batch, once in `refresh_ticks`, if affordable."""
        if self._ticks - self._last_untried < self.settings.refresh_ticks:
            return None
        rates, worthwhile = outlook.rates, self.settings.untried_share * outlook.rates[outlook.best]
        untried = [
            k
            for k in range(1, len(rates))
            if k != outlook.best and rates[k] > worthwhile and self.correction.num_ticks(k, outlook.batch) < 1
        ]
        k = max(untried, key=rates.__getitem__, default=0)
        if k == 0 or not self._affordable(k, outlook):
            return None
        self._last_untried = self._ticks
        return k

    def _num_timed(self, outlook: Outlook) -> float:
        """Ticks of the other kind that were timed in this octave of batch."""
        lengths = (0,) if outlook.best > 0 else range(1, self.max_draft_tokens + 1)
        return sum(self.correction.num_ticks(k, outlook.batch) for k in lengths)

    def _loss_s(self, k: int, outlook: Outlook) -> float:
        """Seconds that a burst of k is expected to lose."""
        share = max(0.0, 1.0 - outlook.rates[k] / outlook.rates[outlook.best])
        return self.settings.burst_ticks * outlook.seconds[k] * share

    def _affordable(self, k: int, outlook: Outlook) -> bool:
        """Whether a burst of k keeps within both shares. What is lost may be foreseen wrongly; ticks are counted."""
        settings = self.settings
        lost_s = self._spent_s + self._loss_s(k, outlook)
        # The first burst is on credit: with less, a short rollout would learn nothing for the next one.
        allowed_s = settings.time_share * (self._elapsed_s + _CREDIT_TICKS * outlook.seconds[outlook.best])
        return lost_s <= allowed_s and self._explored_ticks <= settings.tick_share * self._ticks
