"""Draft as many tokens as maximize the expected tokens per second: a table of seconds, averages, one choice."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.controller.rule import (
    Decision,
    DecodeState,
    Rule,
    RuleInputs,
    SpeedupSums,
    TickObservation,
    no_argument,
)
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.cost_model.speedup import expected_tokens_by_position

_MEMORY_ATTEMPTS = 4000.0  # attempts that count, at most: later ones are followed where acceptance drifts
_PRIOR_ATTEMPTS = 16.0  # weight of what is assumed before anything was verified


@dataclass(slots=True)
class _Position:
    attempts: float = 0.0
    accepted: float = 0.0

    def add(self, attempts: float, accepted: float) -> None:
        keep = max(0.0, 1.0 - attempts / _MEMORY_ATTEMPTS)
        self.attempts = self.attempts * keep + attempts
        self.accepted = self.accepted * keep + accepted

    def mean(self, prior: float) -> float:
        return (self.accepted + prior * _PRIOR_ATTEMPTS) / (self.attempts + _PRIOR_ATTEMPTS)


class AcceptanceAverages:
    """Keeps per-position acceptance of a drafter, P(accepted | all before it were).

    Context length is no input: the counts come from the requests that are running, so when only long survivors are
    left, they are what is counted.

    Args:
        max_draft_tokens: Number of positions.
        prior_acceptance: Mean before any draft was verified.
    """

    def __init__(self, max_draft_tokens: int, prior_acceptance: float = 0.9) -> None:
        self._num_positions, self._prior = max_draft_tokens, prior_acceptance
        self.forget()

    def forget(self) -> None:
        """Begin anew: other weights may be accepted more, or less."""
        self._positions = [_Position() for _ in range(self._num_positions)]
        self._all = _Position()

    def observe(self, attempts: tuple[int, ...], accepted: tuple[int, ...]) -> None:
        """Add counts per draft position; positions above `max_draft_tokens` are ignored."""
        self._all.add(sum(attempts), sum(accepted))
        for position, tried, kept in zip(self._positions, attempts, accepted, strict=False):
            position.add(tried, kept)

    def by_position(self) -> list[float]:
        """Return the mean of each position; those hardly tried lean on the mean over all positions."""
        pooled = self._all.mean(self._prior)
        return [position.mean(pooled) for position in self._positions]

    def expected_tokens(self) -> list[float]:
        """Return tokens per request and tick for k = 0..max_draft_tokens."""
        return expected_tokens_by_position(self.by_position())


class CostModelRule(Rule):
    """Chooses the k that maximizes tokens per second, by a calibrated table and what drafts and copies taught.

    Args:
        table: Predicted seconds of a tick, up to at least `max_draft_tokens`; may be shared by many rules.
        max_draft_tokens: Largest k ever chosen.
        prior_acceptance: Acceptance assumed before any draft of the present weights was verified.
    """

    def __init__(self, table: TickTable, max_draft_tokens: int, prior_acceptance: float = 0.9) -> None:
        self._table, self._max_draft_tokens = table, max_draft_tokens
        self._acceptance = AcceptanceAverages(max_draft_tokens, prior_acceptance)
        # Copied tokens that a pass checks for a request, and those that stand. Other weights change neither: a text
        # repeats itself as much as before.
        self._checked, self._kept = _Position(), _Position()
        self._previous = 0
        self._speedup = SpeedupSums()

    def mark_stale(self) -> None:
        """Learn acceptance again, as the weights changed. So a rule that has given drafting up tries it again."""
        self._acceptance.forget()

    def decide(self, state: DecodeState) -> Decision:
        batch = state.num_running_requests
        if batch < 1:
            return Decision(0, "idle")
        if state.num_prefill_tokens > 0:
            return Decision(0, "prefill")
        limit = min(self._max_draft_tokens, state.max_draft_tokens)
        seconds = self._seconds(batch, state.mean_context_tokens)
        tokens = self._acceptance.expected_tokens()
        best = max(range(limit + 1), key=lambda k: tokens[k] / seconds[k])
        return Decision(best, "drafting_is_faster" if best else "plain_is_faster")

    def _seconds(self, batch: int, context_tokens: float) -> NDArray[np.float64]:
        checked, kept = self._checked.mean(0.0), self._kept.mean(0.0)
        return self._table.by_length(batch, context_tokens, checked=checked, kept=kept)

    def observe(self, observation: TickObservation) -> None:
        k, batch = observation.num_draft_tokens, observation.num_requests
        # The first tick of a length verifies the drafts of the length before.
        settled, self._previous = k == self._previous, k
        is_timed = observation.seconds is not None and not observation.had_prefill
        if settled and is_timed and batch >= 1 and 0 < k <= self._max_draft_tokens:
            self._compare(observation)
        self._acceptance.observe(observation.attempts_per_position, observation.accepted_per_position)
        if (drafting := observation.drafting) is not None:
            self._checked.add(drafting.num_chains_fed, drafting.num_copies)
            self._kept.add(drafting.num_chains_fed, drafting.num_copies_kept)

    def _compare(self, tick: TickObservation) -> None:
        assert tick.seconds is not None
        seconds = self._seconds(tick.num_requests, tick.mean_context_tokens)
        expected, plain_s, sums = self._acceptance.expected_tokens(), float(seconds[0]), self._speedup
        sums.predicted_plain_seconds += expected[tick.num_draft_tokens] * plain_s
        sums.predicted_tick_seconds += float(seconds[tick.num_draft_tokens])
        sums.measured_plain_seconds += tick.num_tokens / tick.num_requests * plain_s
        sums.measured_tick_seconds += tick.seconds

    def take_speedup(self) -> SpeedupSums:
        taken, self._speedup = self._speedup, SpeedupSums()
        return taken


def make(inputs: RuleInputs, argument: str) -> Rule:
    """Make `cost_model`."""
    no_argument("cost_model", argument)
    return CostModelRule(inputs.require_table("cost_model"), inputs.max_draft_tokens, inputs.prior_acceptance)
