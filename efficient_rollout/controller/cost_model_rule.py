"""Draft as many tokens as maximize the expected tokens per second, at every tick, in both directions."""

import math
from dataclasses import dataclass, field

from efficient_rollout.controller.acceptance import AcceptanceEstimator
from efficient_rollout.controller.observation import SpeedupSums, TickObservation
from efficient_rollout.controller.state import Decision, DecodeState
from efficient_rollout.cost_model.correction import OnlineCorrection
from efficient_rollout.cost_model.latency import TickTable

_PROMISING_RISE = 0.1  # acceptance above the last try's by this much: try again soon
_CREDIT_TICKS = 100.0  # what may be lost before anything was decoded, as a share of so many ticks
REASONS = ("idle", "prefill", "plain_is_faster", "drafting_is_faster", "unsure", "hold", "explore")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModelRuleSettings:
    """How careful the rule is.

    Attributes:
        prior_acceptance: Acceptance assumed before any draft was verified.
        switch_gain: Another k must promise this share more tokens per second before the rule moves to it.
        margin_standard_errors: Drafting must pay with the acceptance this many standard errors lower.
        explore_share: At most this share of the time so far is lost by exploring, as far as it can be foreseen.
        explore_tick_share: At most this share of the ticks so far explores, and one burst more.
        min_ticks: Ticks of plain decoding, and of drafting, wanted in each octave of batch before either is trusted.
        refresh_ticks: An alternative is timed again after this many ticks, up to 4 times as many while
            nothing changes.
        untried_share: A length that was never timed is tried if it promises this share of the best length's rate.
        burst_ticks: Exploring lasts this many ticks; the first one is not timed, for it still pays for the switch.
    """

    prior_acceptance: float = 0.9
    switch_gain: float = 0.01
    margin_standard_errors: float = 1.0
    explore_share: float = 0.01
    explore_tick_share: float = 0.02
    min_ticks: int = 3
    refresh_ticks: int = 64
    burst_ticks: int = 3
    untried_share: float = 0.8


@dataclass(slots=True)
class CostModelRule:
    """k that maximizes tokens per second, from a calibrated table, corrected by what ticks really took.

    Attributes:
        table: Predicted seconds of a tick; may be shared by many rules.
        max_draft_tokens: Largest k ever chosen.
        settings: How careful it is.
    """

    table: TickTable
    max_draft_tokens: int
    settings: CostModelRuleSettings = field(default_factory=CostModelRuleSettings)
    acceptance: AcceptanceEstimator = field(init=False)
    correction: OnlineCorrection = field(default_factory=OnlineCorrection)
    _current: int = 0
    _previous: int = 0
    _burst_left: int = 0
    _burst_length: int = 0
    _ticks: int = 0
    _explored_ticks: int = 0
    _spent_s: float = 0.0
    _elapsed_s: float = 0.0
    _last_timed: dict[tuple[bool, int], int] = field(default_factory=dict)
    _patience: int = 0
    _last_length_probe: int = 0
    _acceptance_when_tried: float = 1.0
    _speedup: SpeedupSums = field(default_factory=SpeedupSums)

    def __post_init__(self) -> None:
        self.acceptance = AcceptanceEstimator(self.max_draft_tokens, self.settings.prior_acceptance)
        self._patience = self.settings.refresh_ticks

    def mark_stale(self) -> None:
        """The weights changed: acceptance must be learned again, and alternatives timed again soon."""
        self.acceptance.mark_stale()
        self._patience = self.settings.refresh_ticks

    def decide(self, state: DecodeState) -> Decision:
        """Tokens to draft at this tick."""
        batch = state.num_running_requests
        if batch < 1:
            return Decision(0, "idle")
        if state.num_prefill_tokens > 0:
            return Decision(0, "prefill")
        self._ticks += 1
        limit = min(self.max_draft_tokens, state.max_draft_tokens)
        if self._burst_left > 0 and self._burst_length <= limit:
            self._burst_left -= 1
            return Decision(self._burst_length, "explore")
        seconds = self.tick_seconds(batch, state.mean_context_tokens)[: limit + 1]
        tokens = self.acceptance.expected_tokens()
        rates = [tokens[k] / seconds[k] for k in range(limit + 1)]
        best, reason = self._choose(rates, seconds)
        explored = self._alternative(best, rates, seconds, batch)
        if explored is None and best > 0:
            explored = self._untried_length(best, rates, seconds, batch)
        if explored is not None:
            self._burst_length, self._burst_left = explored, self.settings.burst_ticks - 1
            self._explored_ticks += self.settings.burst_ticks
            self._spent_s += self._loss_s(explored, best, rates, seconds)
            return Decision(explored, "explore")
        self._current = best
        return Decision(best, reason)

    def observe(self, observation: TickObservation) -> None:
        """Learn from a finished tick."""
        expected_tokens = self.acceptance.expected_tokens()
        self.acceptance.observe(observation.attempts_per_position, observation.accepted_per_position)
        k, batch = observation.num_draft_tokens, observation.num_requests
        settled, self._previous = k == self._previous or observation.num_ticks > 1, k
        if batch < 1 or k > self.max_draft_tokens:
            return
        by_length = self.table.by_length(batch, observation.mean_context_tokens)
        predicted = float(by_length[k])
        self._elapsed_s += predicted * observation.num_ticks
        if observation.had_prefill or not settled:
            return
        before = self.correction.log_factor(k, batch)
        plain_s = float(by_length[0]) * math.exp(self.correction.log_factor(0, batch))
        if self.correction.observe(k, batch, predicted, observation.seconds):
            if k > 0:
                self._compare(observation, expected_tokens[k], plain_s, predicted * math.exp(before))
            self._last_timed[k > 0, batch.bit_length()] = self._ticks
            if abs(self.correction.log_factor(k, batch) - before) > 0.1:
                self._patience = self.settings.refresh_ticks

    def take_speedup(self) -> SpeedupSums:
        """Predicted against measured speed-up of the drafting ticks that were learned from since the last call."""
        taken, self._speedup = self._speedup, SpeedupSums()
        return taken

    def _compare(self, tick: TickObservation, expected_tokens: float, plain_s: float, predicted_s: float) -> None:
        assert tick.seconds is not None
        sums = self._speedup
        sums.predicted_plain_seconds += tick.num_ticks * expected_tokens * plain_s
        sums.predicted_tick_seconds += tick.num_ticks * predicted_s
        sums.measured_plain_seconds += tick.num_tokens / tick.num_requests * plain_s
        sums.measured_tick_seconds += tick.num_ticks * tick.seconds

    def tick_seconds(self, batch: int, context_tokens: float) -> list[float]:
        """Corrected seconds of a tick for k = 0..max."""
        predicted = self.table.by_length(batch, context_tokens)
        if self.correction.version == 0:
            return [float(s) for s in predicted[: self.max_draft_tokens + 1]]
        return [
            float(s) * math.exp(self.correction.log_factor(k, batch))
            for k, s in enumerate(predicted[: self.max_draft_tokens + 1])
        ]

    def _choose(self, rates: list[float], seconds: list[float]) -> tuple[int, str]:
        best = max(range(len(rates)), key=rates.__getitem__)
        current = min(self._current, len(rates) - 1)
        if best == 0:
            return 0, "plain_is_faster"
        if not self._pays_when_unlucky(best, rates, seconds):
            return 0, "unsure"
        keep = rates[current] * (1.0 + self.settings.switch_gain) >= rates[best]
        if keep and (current == 0 or rates[current] > rates[0]):
            return current, "hold"
        return best, "drafting_is_faster"

    def _pays_when_unlucky(self, k: int, rates: list[float], seconds: list[float]) -> bool:
        """Whether drafting k tokens beats plain decoding with an acceptance some standard errors lower."""
        lower = self.settings.margin_standard_errors * self.acceptance.standard_error()
        tokens, reach = 1.0, 1.0
        for probability in self.acceptance.by_position()[:k]:
            reach *= max(0.0, probability - lower)
            tokens += reach
        return tokens / seconds[k] > rates[0]

    def _alternative(self, best: int, rates: list[float], seconds: list[float], batch: int) -> int | None:
        """The other kind of tick (plain or drafting), when it was not timed for long and we can afford it."""
        other = 0 if best > 0 else max(range(1, len(rates)), key=rates.__getitem__, default=0)
        if other == best:
            return None
        octave = batch.bit_length()
        known = self.correction.num_ticks(other, batch) if other == 0 else self._drafting_ticks(octave)
        age = self._ticks - self._last_timed.get((other > 0, octave), -self._patience)
        if known >= self.settings.min_ticks and age < self._patience:
            return None
        if known < self.settings.min_ticks and age < self.settings.burst_ticks * 4:
            return None
        if other > 0 and self.acceptance.pooled() > self._acceptance_when_tried + _PROMISING_RISE:
            self._patience = self.settings.refresh_ticks // 4
        if not self._affordable(other, best, rates, seconds):
            return None
        self._last_timed[other > 0, octave] = self._ticks
        if other > 0:
            self._acceptance_when_tried = self.acceptance.pooled()
            self.acceptance.mark_old()
        self._patience = min(2 * self._patience, 4 * self.settings.refresh_ticks)
        return other

    def _untried_length(self, best: int, rates: list[float], seconds: list[float], batch: int) -> int | None:
        """The most promising k > 0 that was never timed near this batch, once in `refresh_ticks`, if affordable."""
        if self._ticks - self._last_length_probe < self.settings.refresh_ticks:
            return None
        worthwhile = self.settings.untried_share * rates[best]
        untried = [
            k
            for k in range(1, len(rates))
            if k != best and rates[k] > worthwhile and self.correction.num_ticks(k, batch) < 1
        ]
        if not untried:
            return None
        k = max(untried, key=rates.__getitem__)
        if not self._affordable(k, best, rates, seconds):
            return None
        self._last_length_probe = self._ticks
        return k

    def _loss_s(self, k: int, best: int, rates: list[float], seconds: list[float]) -> float:
        """Seconds that a burst of k is expected to lose."""
        return self.settings.burst_ticks * seconds[k] * max(0.0, 1.0 - rates[k] / rates[best])

    def _affordable(self, k: int, best: int, rates: list[float], seconds: list[float]) -> bool:
        """Whether a burst of k keeps within both shares. What is lost may be foreseen wrongly; ticks are counted."""
        settings = self.settings
        lost_s = self._spent_s + self._loss_s(k, best, rates, seconds)
        allowed_s = settings.explore_share * (self._elapsed_s + _CREDIT_TICKS * seconds[best])
        # The first burst is on credit: with less, a short rollout would learn nothing for the next one.
        return lost_s <= allowed_s and self._explored_ticks <= settings.explore_tick_share * self._ticks

    def _drafting_ticks(self, octave: int) -> float:
        batch = 1 << (octave - 1)
        return sum(self.correction.num_ticks(k, batch) for k in range(1, self.max_draft_tokens + 1))
