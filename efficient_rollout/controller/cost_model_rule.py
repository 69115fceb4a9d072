"""Draft as many tokens as maximize the expected tokens per second: a table of seconds, averages, one choice."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.controller.acceptance import AcceptanceAverages, LookupAverages
from efficient_rollout.controller.observation import SpeedupSums, TickObservation
from efficient_rollout.controller.rule import Rule, RuleInputs, no_argument
from efficient_rollout.controller.state import Decision, DecodeState
from efficient_rollout.cost_model.latency import TickTable


@dataclass(slots=True)
class CostModelRule(Rule):
    """Chooses the k that maximizes tokens per second.

    It reads a calibrated table and the acceptance since the last weight sync.

    Attributes:
        table: Predicted seconds of a tick; may be shared by many rules.
        max_draft_tokens: Largest k ever chosen.
        prior_acceptance: Acceptance assumed before any draft of the present weights was verified.
        acceptance: What drafts taught.
        lookup: What copies taught.
    """

    table: TickTable
    max_draft_tokens: int
    prior_acceptance: float = 0.9
    acceptance: AcceptanceAverages = field(init=False)
    lookup: LookupAverages = field(default_factory=LookupAverages)
    _previous: int = 0
    _speedup: SpeedupSums = field(default_factory=SpeedupSums)

    def __post_init__(self) -> None:
        self.acceptance = AcceptanceAverages(self.max_draft_tokens, self.prior_acceptance)

    def mark_stale(self) -> None:
        """Learn acceptance again, as the weights changed. So a rule that has given drafting up tries it again."""
        self.acceptance.forget()

    def decide(self, state: DecodeState) -> Decision:
        """Return the tokens to draft at this tick."""
        batch = state.num_running_requests
        if batch < 1:
            return Decision(0, "idle")
        if state.num_prefill_tokens > 0:
            return Decision(0, "prefill")
        limit = min(self.max_draft_tokens, state.max_draft_tokens)
        seconds = self._seconds(batch, state.mean_context_tokens)
        tokens = self.acceptance.expected_tokens()
        best = max(range(limit + 1), key=lambda k: tokens[k] / seconds[k])
        return Decision(best, "drafting_is_faster" if best else "plain_is_faster")

    def _seconds(self, batch: int, context_tokens: float) -> NDArray[np.float64]:
        return self.table.by_length(batch, context_tokens, checked=self.lookup.checked, kept=self.lookup.kept)

    def observe(self, observation: TickObservation) -> None:
        """Learn from a finished tick."""
        k, batch = observation.num_draft_tokens, observation.num_requests
        # The first tick of a length verifies the drafts of the length before.
        settled, self._previous = k == self._previous, k
        is_timed = observation.seconds is not None and not observation.had_prefill
        if settled and is_timed and batch >= 1 and 0 < k <= self.max_draft_tokens:
            self._compare(observation)
        self.acceptance.observe(observation.attempts_per_position, observation.accepted_per_position)
        if observation.drafting is not None:
            self.lookup.observe(observation.drafting)

    def _compare(self, tick: TickObservation) -> None:
        assert tick.seconds is not None
        seconds = self._seconds(tick.num_requests, tick.mean_context_tokens)
        expected, plain_s, sums = self.acceptance.expected_tokens(), float(seconds[0]), self._speedup
        sums.predicted_plain_seconds += expected[tick.num_draft_tokens] * plain_s
        sums.predicted_tick_seconds += float(seconds[tick.num_draft_tokens])
        sums.measured_plain_seconds += tick.num_tokens / tick.num_requests * plain_s
        sums.measured_tick_seconds += tick.seconds

    def take_speedup(self) -> SpeedupSums:
        """Return predicted against measured speed-up of the timed ticks that drafted since the last call."""
        taken, self._speedup = self._speedup, SpeedupSums()
        return taken


def make(inputs: RuleInputs, argument: str) -> Rule:
    """Make `cost_model`."""
    no_argument("cost_model", argument)
    return CostModelRule(inputs.require_table("cost_model"), inputs.max_draft_tokens, inputs.prior_acceptance)
