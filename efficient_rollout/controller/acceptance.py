"""How likely each draft position is accepted: averages of what was verified since the weights came."""

from dataclasses import dataclass, field

from efficient_rollout.controller.observation import DraftCounts
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


@dataclass(slots=True)
class AcceptanceAverages:
    """Keeps per-position acceptance of a drafter, P(accepted | all before it were).

    Context length is no input: the counts come from the requests that are running, so when only long survivors are
    left, they are what is counted.

    Attributes:
        max_draft_tokens: Number of positions.
        prior_acceptance: Mean before any draft was verified.
    """

    max_draft_tokens: int
    prior_acceptance: float = 0.9
    _positions: list[_Position] = field(default_factory=list)
    _all: _Position = field(default_factory=_Position)

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: other weights may be accepted more, or less."""
        self._positions = [_Position() for _ in range(self.max_draft_tokens)]
        self._all = _Position()

    def observe(self, attempts: tuple[int, ...], accepted: tuple[int, ...]) -> None:
        """Add counts per draft position; positions above `max_draft_tokens` are ignored."""
        self._all.add(sum(attempts), sum(accepted))
        for position, tried, kept in zip(self._positions, attempts, accepted, strict=False):
            position.add(tried, kept)

    def by_position(self) -> list[float]:
        """Return the mean of each position; those hardly tried lean on the mean over all positions."""
        pooled = self._all.mean(self.prior_acceptance)
        return [position.mean(pooled) for position in self._positions]

    def expected_tokens(self) -> list[float]:
        """Return tokens per request and tick for k = 0..max_draft_tokens."""
        return expected_tokens_by_position(self.by_position())


@dataclass(slots=True)
class LookupAverages:
    """Keeps how many copied tokens a draft pass checks for a request, and how many of them stand.

    Other weights change neither: a text repeats itself as much as before.
    """

    _checked: _Position = field(default_factory=_Position)
    _kept: _Position = field(default_factory=_Position)

    def observe(self, counts: DraftCounts) -> None:
        """Add the counts of a tick."""
        self._checked.add(counts.num_chains_fed, counts.num_copies)
        self._kept.add(counts.num_chains_fed, counts.num_copies_kept)

    @property
    def checked(self) -> float:
        """Return the copies that a pass checks for a request; 0 before any was."""
        return self._checked.mean(0.0)

    @property
    def kept(self) -> float:
        """Return those of them that stand."""
        return self._kept.mean(0.0)
