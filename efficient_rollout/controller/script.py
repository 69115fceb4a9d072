"""A rule that follows a script, for measuring and for checks: no product chooses it."""

from efficient_rollout.controller.rule import Decision, DecodeState, Rule

# Key of a request's `extra_args`, whose value is a script: a list of draft lengths.
PATTERN = "draft_tokens_per_tick"


class Script(Rule):
    """Drafts entry i of a pattern at tick i, cyclically.

    Attributes:
        pattern: Draft tokens per request; may be replaced between ticks.
    """

    def __init__(self) -> None:
        self.pattern: list[int] = [0]
        self._num_decided = 0

    def decide(self, state: DecodeState) -> Decision:
        """Go through the pattern entry by entry, however often it was replaced."""
        self._num_decided += 1
        wanted = self.pattern[self._num_decided % len(self.pattern)]
        return Decision(min(wanted, state.max_draft_tokens), "scripted")
