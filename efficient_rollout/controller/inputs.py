"""What rules are made from: settings, a latency table, and the argument of a name on a command line."""

from dataclasses import dataclass

from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleInputs:
    """Holds what rules are made from.

    Attributes:
        max_draft_tokens: Largest k of any decision, at least 1.
        num_draft_tokens: k of `always` and `batch_threshold` when they draft; None is `max_draft_tokens`.
        max_running_requests: `batch_threshold` drafts at or below this many requests.
        table: Predicted tick seconds, up to at least `max_draft_tokens`; `cost_model`, `published` and a
            `batch_table` without an argument need it.
        prior_acceptance: Acceptance assumed before any draft was verified.
    """

    max_draft_tokens: int
    num_draft_tokens: int | None = None
    max_running_requests: int = 8
    table: TickTable | None = None
    prior_acceptance: float = 0.9

    @property
    def draft_tokens_when_drafting(self) -> int:
        """Return `num_draft_tokens`, or `max_draft_tokens` where that is unset."""
        return self.num_draft_tokens or self.max_draft_tokens

    def require_table(self, rule: str) -> TickTable:
        """Return the latency table.

        Raises:
            ConfigError: there is none, or it stops below `max_draft_tokens`.
        """
        if self.table is None:
            raise ConfigError(f"rule {rule} needs a latency profile; make one with: efficient-rollout calibrate")
        if self.table.max_draft_tokens < self.max_draft_tokens:
            raise ConfigError(
                f"rule {rule} drafts up to {self.max_draft_tokens} tokens, the latency table has"
                f" {self.table.max_draft_tokens}; build TickTable with max_draft_tokens={self.max_draft_tokens}"
            )
        return self.table


def no_argument(rule: str, argument: str) -> None:
    """Refuse an argument.

    Raises:
        ConfigError: There is one.
    """
    if argument:
        raise ConfigError(f"rule {rule} takes no argument, got {argument!r}")


def integers(rule: str, argument: str, defaults: list[int]) -> list[int]:
    """Return positive integers out of an argument, the rest from the defaults.

    Raises:
        ConfigError: The argument is something else, or has more of them.
    """
    given = argument.split(",") if argument else []
    if len(given) > len(defaults) or not all(part.isdecimal() and int(part) > 0 for part in given):
        raise ConfigError(f"rule {rule} takes up to {len(defaults)} positive integers, got {argument!r}")
    return [int(part) for part in given] + defaults[len(given) :]
