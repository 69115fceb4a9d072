"""Draft as many tokens as maximize the expected tokens per second, at every tick, in both directions."""

import math
from dataclasses import dataclass, field

from efficient_rollout.controller.acceptance import AcceptanceEstimator
from efficient_rollout.controller.exploration import Exploration, ExplorationSettings, Outlook
from efficient_rollout.controller.inputs import RuleInputs, no_argument
from efficient_rollout.controller.observation import SpeedupSums, TickObservation
from efficient_rollout.controller.rule import Rule
from efficient_rollout.controller.state import Decision, DecodeState
from efficient_rollout.cost_model.correction import OnlineCorrection
from efficient_rollout.cost_model.latency import TickTable


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModelRuleSettings:
    """How careful the rule is.

    Attributes:
        prior_acceptance: Acceptance assumed before any draft was verified.
        switch_gain: Another k must promise this share more tokens per second before the rule moves to it.
        margin_standard_errors: Drafting must pay with the acceptance this many standard errors lower.
        exploration: How curious it is.
    """

    prior_acceptance: float = 0.9
    switch_gain: float = 0.01
    margin_standard_errors: float = 1.0
    exploration: ExplorationSettings = field(default_factory=ExplorationSettings)


@dataclass(slots=True)
class CostModelRule:
    """k that maximizes tokens per second, from a calibrated table, corrected by what ticks really took.

    Attributes:
        table: Predicted seconds of a tick; may be shared by many rules.
        max_draft_tokens: Largest k ever chosen.
        settings: How careful it is.
        acceptance: What drafts taught.
        correction: What ticks taught.
        exploration: When another k is tried.
    """

    table: TickTable
    max_draft_tokens: int
    settings: CostModelRuleSettings = field(default_factory=CostModelRuleSettings)
    acceptance: AcceptanceEstimator = field(init=False)
    correction: OnlineCorrection = field(default_factory=OnlineCorrection)
    exploration: Exploration = field(init=False)
    _current: int = 0
    _previous: int = 0
    _speedup: SpeedupSums = field(default_factory=SpeedupSums)

    def __post_init__(self) -> None:
        self.acceptance = AcceptanceEstimator(self.max_draft_tokens, self.settings.prior_acceptance)
        self.exploration = Exploration(self.correction, self.max_draft_tokens, self.settings.exploration)

    def mark_stale(self) -> None:
        """The weights changed: acceptance must be learned again, and alternatives timed again soon."""
        self.acceptance.mark_stale()
        self.exploration.mark_stale()

    def decide(self, state: DecodeState) -> Decision:
        """Tokens to draft at this tick."""
        batch = state.num_running_requests
        if batch < 1:
            return Decision(0, "idle")
        if state.num_prefill_tokens > 0:
            return Decision(0, "prefill")
        limit = min(self.max_draft_tokens, state.max_draft_tokens)
        tried = self.exploration.next_tick(limit)
        if tried is not None:
            return Decision(tried, "explore")
        seconds = self.tick_seconds(batch, state.mean_context_tokens)[: limit + 1]
        tokens = self.acceptance.expected_tokens()
        rates = [tokens[k] / seconds[k] for k in range(limit + 1)]
        best, reason = self._choose(rates, seconds)
        tried = self.exploration.start_burst(
            Outlook(batch=batch, best=best, rates=rates, seconds=seconds, acceptance=self.acceptance.pooled())
        )
        if tried is None:
            self._current = best
            return Decision(best, reason)
        if best == 0:
            self.acceptance.mark_old()
        return Decision(tried, "explore")

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
        self.exploration.elapse(predicted * observation.num_ticks)
        if observation.had_prefill or not settled:
            return
        before = self.correction.log_factor(k, batch)
        plain_s = float(by_length[0]) * math.exp(self.correction.log_factor(0, batch))
        if self.correction.observe(k, batch, predicted, observation.seconds):
            if k > 0:
                self._compare(observation, expected_tokens[k], plain_s, predicted * math.exp(before))
            self.exploration.note_timed(k, batch, self.correction.log_factor(k, batch) - before)

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


def make(inputs: RuleInputs, argument: str) -> Rule:
    """`cost_model`."""
    no_argument("cost_model", argument)
    settings = CostModelRuleSettings(prior_acceptance=inputs.prior_acceptance)
    return CostModelRule(inputs.require_table("cost_model"), inputs.max_draft_tokens, settings)
