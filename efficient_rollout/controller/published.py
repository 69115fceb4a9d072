"""The published method, as a baseline: a one-way switch within a rollout, a ladder of lengths between rollouts.

Source: EfficientRollout, arXiv 2606.18967, section 4: drafting starts once the batch has ramped up and the predicted
speed-up reaches 1.05, and stays on for the rest of the rollout; the length moves along 5, 7, 9, 11, up when the
rollout's acceptance was at least 0.94 twice in a row, down when it was at most 0.85 twice in a row.
"""

from dataclasses import dataclass

from efficient_rollout.controller.rule import Decision, DecodeState, Rule, RuleInputs, TickObservation, integers
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.cost_model.speedup import expected_tokens
from efficient_rollout.errors import ConfigError

LADDER = (5, 7, 9, 11)
_MIN_SPEEDUP = 1.05
_RAMP_UP_REQUESTS = 32  # the batch counts as ramped up once it has held this many, or nothing waits
_UP, _DOWN, _PATIENCE = 0.94, 0.85, 2


@dataclass(slots=True)
class Published(Rule):
    """Follows the published rule.

    Attributes:
        length: Present rung of `LADDER`.
        acceptance: Last measured per-token acceptance, or a guess before the first rollout.
    """

    table: TickTable
    length: int = LADDER[0]
    acceptance: float = 0.9
    _on: bool = False
    _attempts: int = 0
    _accepted: int = 0
    _streak: int = 0
    _highest: int = 0

    def __post_init__(self) -> None:
        if self.length not in LADDER:
            raise ConfigError(f"published starts at {self.length}; choose one of {list(LADDER)}")

    def decide(self, state: DecodeState) -> Decision:
        batch = state.num_running_requests
        if batch < 1:
            return Decision(0, "idle")
        self._highest = max(self._highest, batch)
        k = min(self.length, state.max_draft_tokens)
        if self._on:
            return Decision(k, "switched_on")
        waits = state.num_waiting_requests > 0 or state.num_prefill_tokens > 0
        if waits or (self._highest < _RAMP_UP_REQUESTS and batch == self._highest and batch > 1):
            return Decision(0, "ramp_up")
        seconds = self.table.by_length(batch, state.mean_context_tokens)
        self._on = expected_tokens(self._present(), k) * seconds[0] / seconds[k] >= _MIN_SPEEDUP
        return Decision(k, "switched_on") if self._on else Decision(0, "below_threshold")

    def observe(self, observation: TickObservation) -> None:
        self._attempts += sum(observation.attempts_per_position)
        self._accepted += sum(observation.accepted_per_position)

    def mark_stale(self) -> None:
        """Move along the ladder and switch off, as a rollout ended."""
        self.acceptance = self._present()
        direction = (self.acceptance >= _UP) - (self.acceptance <= _DOWN) if self._attempts else 0
        self._streak = self._streak + direction if direction * self._streak >= 0 and direction else direction
        if abs(self._streak) >= _PATIENCE:
            rung = LADDER.index(self.length) + (1 if self._streak > 0 else -1)
            self.length = LADDER[min(max(rung, 0), len(LADDER) - 1)]
            self._streak = 0
        self._on, self._attempts, self._accepted, self._highest = False, 0, 0, 0

    def _present(self) -> float:
        return self._accepted / self._attempts if self._attempts else self.acceptance


def make(inputs: RuleInputs, argument: str) -> Rule:
    """Make `published`, or `published:7`, which starts at another rung of the ladder."""
    table = inputs.require_table("published")
    return Published(table, integers("published", argument, [LADDER[0]])[0], inputs.prior_acceptance)
