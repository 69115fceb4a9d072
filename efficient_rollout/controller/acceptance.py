"""How likely each draft position is accepted, how sure we are, and how fast we forget.

Each position has a Beta posterior over P(accepted | all before it were): prior counts plus discounted counts. Context
length is no input: the counts come from the requests that are running, so when only long survivors are left, they
are what is counted.
"""

import math
from dataclasses import dataclass, field

from efficient_rollout.cost_model.speedup import expected_tokens_by_position

_MEMORY_ATTEMPTS = 4000.0  # discounted attempts never exceed it: the estimate follows a policy that drifts
_FAST_MEMORY_ATTEMPTS = 96.0  # a second, short memory that notices a sudden change
_CHANGE_Z = 4.5  # fast and slow memory differ by this many standard errors: start again from the fast one
_RESTART_ATTEMPTS = 6.0  # weight of what is kept then: the window still holds tries from before the change
_IDLE_KEEP = 0.25  # share of the counts kept when drafting is tried again after a pause
_STALE_KEEP = 0.1  # share of the counts that survives a weight sync; drafting with new weights is nearly as good


@dataclass(slots=True)
class _Position:
    attempts: float = 0.0
    accepted: float = 0.0


@dataclass(slots=True)
class AcceptanceEstimator:
    """Per-position acceptance of a drafter.

    Attributes:
        max_draft_tokens: Number of positions.
        prior_acceptance: Mean before any draft was verified; after a sudden change, the mean just after it.
        prior_attempts: Weight of the prior, in attempts.
    """

    max_draft_tokens: int
    prior_acceptance: float = 0.9
    prior_attempts: float = 16.0
    _positions: list[_Position] = field(default_factory=list)
    _slow: _Position = field(default_factory=_Position)
    _fast: _Position = field(default_factory=_Position)
    _tokens: list[float] | None = None

    def __post_init__(self) -> None:
        self._positions = [_Position() for _ in range(self.max_draft_tokens)]

    def observe(self, attempts: tuple[int, ...], accepted: tuple[int, ...]) -> None:
        """Add counts per draft position; positions above `max_draft_tokens` are ignored."""
        total_attempts, total_accepted = sum(attempts), sum(accepted)
        if total_attempts <= 0:
            return
        self._tokens = None
        _add(self._slow, total_attempts, total_accepted, _MEMORY_ATTEMPTS)
        _add(self._fast, total_attempts, total_accepted, _FAST_MEMORY_ATTEMPTS)
        for position, tried, kept in zip(self._positions, attempts, accepted, strict=False):
            _add(position, tried, kept, _MEMORY_ATTEMPTS)
        if self._changed():
            self._restart()

    def mark_stale(self) -> None:
        """The weights changed: keep the means, trust them little."""
        self._forget(_STALE_KEEP)

    def mark_old(self) -> None:
        """Nothing was drafted for a while: let the next tries count for more."""
        self._forget(_IDLE_KEEP)

    def _forget(self, keep: float) -> None:
        self._tokens = None
        for position in (*self._positions, self._slow, self._fast):
            position.attempts *= keep
            position.accepted *= keep

    def pooled(self) -> float:
        """Acceptance over all positions together."""
        return (self._slow.accepted + self.prior_acceptance * self.prior_attempts) / (
            self._slow.attempts + self.prior_attempts
        )

    def by_position(self) -> list[float]:
        """Posterior mean per position; positions hardly tried lean on the pooled value."""
        pooled, weight = self.pooled(), self.prior_attempts
        return [(p.accepted + pooled * weight) / (p.attempts + weight) for p in self._positions]

    def standard_error(self) -> float:
        """Posterior standard deviation of the pooled acceptance."""
        mean = self.pooled()
        return math.sqrt(max(mean * (1.0 - mean), 1e-4) / (self._slow.attempts + self.prior_attempts + 1.0))

    def expected_tokens(self) -> list[float]:
        """Tokens per request and tick for k = 0..max_draft_tokens."""
        if self._tokens is None:
            self._tokens = expected_tokens_by_position(self.by_position())
        return self._tokens

    def _changed(self) -> bool:
        fast, slow = self._fast, self._slow
        if fast.attempts < 24.0 or slow.attempts <= 1.5 * fast.attempts:
            return False
        before_attempts, before_accepted = slow.attempts - fast.attempts, slow.accepted - fast.accepted
        pooled = min(max((slow.accepted + 1.0) / (slow.attempts + 2.0), 1e-3), 1.0 - 1e-3)
        error = math.sqrt(pooled * (1.0 - pooled) * (1.0 / before_attempts + 1.0 / fast.attempts))
        return abs(fast.accepted / fast.attempts - before_accepted / before_attempts) > _CHANGE_Z * error

    def _restart(self) -> None:
        rate = self._fast.accepted / self._fast.attempts
        for position in self._positions:
            position.attempts = position.accepted = 0.0
        self.prior_acceptance, self.prior_attempts = rate, _RESTART_ATTEMPTS
        self._slow, self._fast = _Position(), _Position()


def _add(position: _Position, attempts: float, accepted: float, memory: float) -> None:
    keep = max(0.0, 1.0 - attempts / memory)
    position.attempts = position.attempts * keep + attempts
    position.accepted = position.accepted * keep + accepted
