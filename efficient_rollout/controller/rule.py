"""What a rule is, what it is made from and by which name; and the rules that need no latency model.

Each answers one question: how many tokens to draft now? On a command line a name may carry an argument: `always:4`,
`batch_threshold:4,8`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING

from efficient_rollout.errors import ConfigError
from efficient_rollout.rule_table import RULES

if TYPE_CHECKING:  # who counts ticks, in whatever process, needs no numpy for it
    from efficient_rollout.cost_model.latency import TickTable

# How a benchmark calls a rule on its command line, and in its results.
ALIASES = {"table": "batch_table"}
# Key of a request's `extra_args`, whose value is the pattern of a `Script`: a list of draft lengths.
PATTERN = "draft_tokens_per_tick"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeState:
    """Describes one engine tick, as the scheduler sees it before it schedules.

    Prompt tokens to prefill are those of running requests; the mean context, prompt and response, is 0.0 when none run.
    The answer's upper bound is the settings', and what any running request wants; 0 is no question to a rule.
    """

    num_running_requests: int
    num_waiting_requests: int
    num_prefill_tokens: int
    mean_context_tokens: float
    max_draft_tokens: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Holds the draft tokens per request for one tick, 0 for plain decoding; the reason goes into the metrics."""

    num_draft_tokens: int
    reason: str


@dataclass(slots=True, kw_only=True)
class DraftCounts:
    """Counts what draft passes did.

    Attributes:
        num_chains_fed: Passes, summed over requests: each gives a request one draw, and the copies before it.
        num_copies: Copied tokens that passes checked.
        num_copies_kept: Those that were the drafter's own draws, and went into a chain.
    """

    num_passes: int = 0
    num_chains_fed: int = 0
    num_copies: int = 0
    num_copies_kept: int = 0

    def add(self, other: "DraftCounts") -> None:
        """Add another's counts."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class TickObservation:
    """Holds one finished tick, of requests that decoded.

    Attributes:
        mean_context_tokens: As it was decided on.
        attempts_per_position: How often draft position i was reached, that is, all positions before it were accepted.
        accepted_per_position: How often it was the policy's own draw.
        num_tokens: Emitted by the tick, all requests together.
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

    A speed-up is the time of plain decoding for the same tokens, by the profile, over that of drafting: predicted for
    the tokens that were expected, by the profile; measured for those that were emitted, by the clock.
    """

    predicted_plain_seconds: float = 0.0
    predicted_tick_seconds: float = 0.0
    measured_plain_seconds: float = 0.0
    measured_tick_seconds: float = 0.0


class Rule:
    """Chooses the number of draft tokens for one engine tick. One that learns nothing overrides `decide` alone."""

    __slots__ = ()

    def observe(self, observation: TickObservation) -> None:
        """Learn from a finished tick; called in tick order, possibly a few ticks after its decision."""

    def mark_stale(self) -> None:
        """Note that the weights changed: a new rollout begins."""

    def decide(self, state: DecodeState) -> Decision:
        """Return the decision for this tick; called once per tick, in tick order."""
        raise NotImplementedError

    def take_speedup(self) -> SpeedupSums | None:
        """Return predicted against measured speed-up since the last call; None from a rule that predicts none."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleInputs:
    """Holds what rules are made from.

    Attributes:
        max_draft_tokens: Largest k of any decision, at least 1.
        num_draft_tokens: k of `always` and `batch_threshold` when they draft; None is `max_draft_tokens`.
        max_running_requests: `batch_threshold` drafts at or below this many requests.
        table: Predicted tick seconds, up to at least `max_draft_tokens`.
        prior_acceptance: Acceptance assumed before any draft was verified.
    """

    max_draft_tokens: int
    num_draft_tokens: int | None = None
    max_running_requests: int = 8
    table: "TickTable | None" = None
    prior_acceptance: float = 0.9

    @property
    def draft_tokens_when_drafting(self) -> int:
        """Return `num_draft_tokens`, or `max_draft_tokens` where that is unset."""
        return self.num_draft_tokens or self.max_draft_tokens

    def require_table(self, rule: str) -> "TickTable":
        """Return the latency table; raise ConfigError where there is none, or it stops below `max_draft_tokens`."""
        if self.table is None:
            raise ConfigError(f"rule {rule} needs a latency profile; make one with: efficient-rollout calibrate")
        if self.table.max_draft_tokens < self.max_draft_tokens:
            raise ConfigError(
                f"rule {rule} drafts up to {self.max_draft_tokens} tokens, the latency table has"
                f" {self.table.max_draft_tokens}; build TickTable with max_draft_tokens={self.max_draft_tokens}"
            )
        return self.table


def split_names(text: str) -> list[str]:
    """Return the names of a list with commas: `never,batch_threshold:4,8` is two, as names begin with a letter."""
    names: list[str] = []
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        if names and not piece[0].isalpha():
            names[-1] += f",{piece}"
        else:
            names.append(piece)
    return names


def make_rule(name: str, inputs: RuleInputs) -> Rule:
    """Return a new rule by a key of `RULES`, perhaps with `:argument`, which comes before `inputs`.

    Raises:
        ConfigError: the name is unknown, the argument malformed, or an input is missing.
    """
    bare, _, argument = name.partition(":")
    if bare not in RULES:
        raise ConfigError(f"unknown rule {bare!r}; choose one of {', '.join(RULES)}")
    module, _, function = RULES[bare].maker.partition(":")
    make: Callable[[RuleInputs, str], Rule] = getattr(import_module(f"{__package__}.{module}"), function)
    return make(inputs, argument)


def no_argument(rule: str, argument: str) -> None:
    """Raise ConfigError where there is an argument."""
    if argument:
        raise ConfigError(f"rule {rule} takes no argument, got {argument!r}")


def integers(rule: str, argument: str, defaults: list[int]) -> list[int]:
    """Return positive integers out of an argument, the rest from the defaults; raise ConfigError for anything else."""
    given = argument.split(",") if argument else []
    if len(given) > len(defaults) or not all(part.isdecimal() and int(part) > 0 for part in given):
        raise ConfigError(f"rule {rule} takes up to {len(defaults)} positive integers, got {argument!r}")
    return [int(part) for part in given] + defaults[len(given) :]


@dataclass(frozen=True, slots=True)
class Never(Rule):
    """Decodes plainly: the drafter never runs."""

    def decide(self, state: DecodeState) -> Decision:  # noqa: ARG002 - every rule's signature
        return Decision(0, "never")


@dataclass(frozen=True, slots=True)
class Always(Rule):
    """Drafts the same number of tokens per request at every tick."""

    num_draft_tokens: int

    def decide(self, state: DecodeState) -> Decision:
        return Decision(min(self.num_draft_tokens, state.max_draft_tokens), "always")


@dataclass(frozen=True, slots=True)
class BatchThreshold(Rule):
    """Drafts while at most so many requests are running or waiting; decodes plainly while more are."""

    num_draft_tokens: int
    max_running_requests: int

    def decide(self, state: DecodeState) -> Decision:
        if state.num_running_requests + state.num_waiting_requests > self.max_running_requests:
            return Decision(0, "batch_above_threshold")
        return Decision(min(self.num_draft_tokens, state.max_draft_tokens), "batch_below_threshold")


def make_never(_: RuleInputs, argument: str) -> Rule:
    """Make `never`."""
    no_argument("never", argument)
    return Never()


def make_always(inputs: RuleInputs, argument: str) -> Rule:
    """Make `always`, or `always:4`."""
    return Always(integers("always", argument, [inputs.draft_tokens_when_drafting])[0])


def make_batch_threshold(inputs: RuleInputs, argument: str) -> Rule:
    """Make `batch_threshold`, or `batch_threshold:4,8`."""
    defaults = [inputs.draft_tokens_when_drafting, inputs.max_running_requests]
    return BatchThreshold(*integers("batch_threshold", argument, defaults))


class Script(Rule):
    """Drafts entry i of a pattern at tick i, cyclically, for measuring and for checks: no product chooses it."""

    def __init__(self) -> None:
        self.pattern: list[int] = [0]
        self._num_decided = 0

    def decide(self, state: DecodeState) -> Decision:
        self._num_decided += 1  # whichever pattern it is: one may be replaced between ticks
        wanted = self.pattern[self._num_decided % len(self.pattern)]
        return Decision(min(wanted, state.max_draft_tokens), "scripted")
