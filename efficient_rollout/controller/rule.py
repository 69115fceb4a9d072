"""Rules that need no latency model. Each answers one question: how many tokens to draft now?"""

from dataclasses import dataclass
from typing import Protocol

from efficient_rollout.controller.inputs import RuleInputs, integers, no_argument
from efficient_rollout.controller.observation import SpeedupSums, TickObservation
from efficient_rollout.controller.state import Decision, DecodeState


class Rule(Protocol):
    """Chooses the number of draft tokens for one engine tick."""

    def observe(self, observation: TickObservation) -> None:
        """Learn from a finished tick; called in tick order, possibly a few ticks after its decision."""
        ...

    def mark_stale(self) -> None:
        """Note that the weights changed: a new rollout begins."""
        ...

    def decide(self, state: DecodeState) -> Decision:
        """Return the decision for this tick; called once per tick, in tick order."""
        ...

    def take_speedup(self) -> SpeedupSums | None:
        """Return predicted against measured speed-up since the last call; None from a rule that predicts none."""
        ...


class Unlearning:
    """Is the feedback half of a rule that learns nothing."""

    __slots__ = ()

    def observe(self, observation: TickObservation) -> None:
        """Ignore the tick."""

    def mark_stale(self) -> None:
        """Ignore the weight sync."""

    def take_speedup(self) -> SpeedupSums | None:
        """Return None: nothing is predicted."""
        return None


@dataclass(frozen=True, slots=True)
class Never(Unlearning):
    """Decodes plainly: the drafter never runs."""

    def decide(self, state: DecodeState) -> Decision:  # noqa: ARG002 - the protocol's signature
        return Decision(0, "never")


@dataclass(frozen=True, slots=True)
class Always(Unlearning):
    """Drafts the same number of tokens at every tick.

    Attributes:
        num_draft_tokens: Draft tokens per request, capped by the state's `max_draft_tokens`.
    """

    num_draft_tokens: int

    def decide(self, state: DecodeState) -> Decision:
        return Decision(min(self.num_draft_tokens, state.max_draft_tokens), "always")


@dataclass(frozen=True, slots=True)
class BatchThreshold(Unlearning):
    """Drafts while few requests run; decodes plainly while many do.

    Attributes:
        num_draft_tokens: Draft tokens per request when drafting.
        max_running_requests: Draft only when at most this many requests are running or waiting.
    """

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
