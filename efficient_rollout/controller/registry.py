"""Every rule by name. On a command line a name may carry an argument: `always:4`, `batch_threshold:4,8`."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from efficient_rollout.controller.batch_table import BatchTable, compile_table, table_from_lists
from efficient_rollout.controller.cost_model_rule import CostModelRule, CostModelRuleSettings
from efficient_rollout.controller.published import LADDER, Published
from efficient_rollout.controller.rule import Always, BatchThreshold, Never, Rule
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.errors import ConfigError

_REFERENCE_CONTEXT_TOKENS = 1024.0  # of a compiled batch table, which knows no context
_TABLE_MAX_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleInputs:
    """What rules are made from.

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
        """`num_draft_tokens`, or `max_draft_tokens` where that is unset."""
        return self.num_draft_tokens or self.max_draft_tokens

    def require_table(self, rule: str) -> TickTable:
        """The latency table.

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


def _never(_: RuleInputs, argument: str) -> Rule:
    _no_argument("never", argument)
    return Never()


def _always(inputs: RuleInputs, argument: str) -> Rule:
    return Always(_integers("always", argument, [inputs.draft_tokens_when_drafting])[0])


def _batch_threshold(inputs: RuleInputs, argument: str) -> Rule:
    defaults = [inputs.draft_tokens_when_drafting, inputs.max_running_requests]
    return BatchThreshold(*_integers("batch_threshold", argument, defaults))


def _batch_table(inputs: RuleInputs, argument: str) -> Rule:
    if argument:
        try:
            rows = json.loads(argument)
        except json.JSONDecodeError as error:
            raise ConfigError(f"batch_table needs JSON such as [[1,8,7],[9,32,3]], got {argument!r}") from error
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise ConfigError(f"batch_table needs a list of [first, last, k], got {argument!r}")
        return table_from_lists(rows)
    ranges = compile_table(
        inputs.require_table("batch_table"),
        acceptance=inputs.prior_acceptance,
        context_tokens=_REFERENCE_CONTEXT_TOKENS,
        max_draft_tokens=inputs.max_draft_tokens,
        max_batch=_TABLE_MAX_BATCH,
    )
    return BatchTable(tuple(ranges))


def _published(inputs: RuleInputs, argument: str) -> Rule:
    table = inputs.require_table("published")
    return Published(table, _integers("published", argument, [LADDER[0]])[0], inputs.prior_acceptance)


def _cost_model(inputs: RuleInputs, argument: str) -> Rule:
    _no_argument("cost_model", argument)
    settings = CostModelRuleSettings(prior_acceptance=inputs.prior_acceptance)
    return CostModelRule(inputs.require_table("cost_model"), inputs.max_draft_tokens, settings)


# How a benchmark calls a rule on its command line, and in its results.
ALIASES = {"table": "batch_table"}

RULES: dict[str, Callable[[RuleInputs, str], Rule]] = {
    "never": _never,
    "always": _always,
    "batch_threshold": _batch_threshold,
    "batch_table": _batch_table,
    "published": _published,
    "cost_model": _cost_model,
}


def split_names(text: str) -> list[str]:
    """Names of a comma-separated list; a piece that starts with no letter goes on with the argument before it.

    `never,batch_threshold:4,8` is two names.
    """
    names: list[str] = []
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        if names and not piece[0].isalpha():
            names[-1] += f",{piece}"
        else:
            names.append(piece)
    return names


def make_rule(name: str, inputs: RuleInputs) -> Rule:
    """A new rule, with a memory of its own.

    Args:
        name: A key of `RULES`; from a command line perhaps with `:argument`, which comes before `inputs`.
        inputs: What it is made from.

    Raises:
        ConfigError: the name is unknown, the argument malformed, or an input is missing.
    """
    bare, _, argument = name.partition(":")
    if bare not in RULES:
        raise ConfigError(f"unknown rule {bare!r}; choose one of {', '.join(RULES)}")
    return RULES[bare](inputs, argument)


def _no_argument(rule: str, argument: str) -> None:
    if argument:
        raise ConfigError(f"rule {rule} takes no argument, got {argument!r}")


def _integers(rule: str, argument: str, defaults: list[int]) -> list[int]:
    given = argument.split(",") if argument else []
    if len(given) > len(defaults) or not all(part.isdecimal() and int(part) > 0 for part in given):
        raise ConfigError(f"rule {rule} takes up to {len(defaults)} positive integers, got {argument!r}")
    return [int(part) for part in given] + defaults[len(given) :]
