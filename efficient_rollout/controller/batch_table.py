"""vLLM's own rule: a table from batch size to draft tokens, and how to make one from a latency profile."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from efficient_rollout.controller.rule import Rule, RuleInputs
from efficient_rollout.controller.state import Decision, DecodeState
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.cost_model.speedup import expected_tokens
from efficient_rollout.errors import ConfigError

Range = tuple[int, int, int]
_REFERENCE_CONTEXT_TOKENS = 1024.0  # of a compiled table, which knows no context
_MAX_BATCH = 256


@dataclass(frozen=True, slots=True)
class BatchTable(Rule):
    """Chooses the k of the range that holds the batch; 0 outside every range.

    Attributes:
        ranges: (first batch, last batch, k), as in vLLM's `num_speculative_tokens_per_batch_size`.

    Raises:
        ConfigError: a range is empty, negative, or overlaps the one before.
    """

    ranges: tuple[Range, ...]

    def __post_init__(self) -> None:
        for low, high, k in self.ranges:
            if not 1 <= low <= high or k < 0:
                raise ConfigError(f"batch table entry {[low, high, k]} must be [first >= 1, last >= first, k >= 0]")
        for left, right in pairwise(self.ranges):
            if right[0] <= left[1]:
                raise ConfigError(f"batch table entries {list(left)} and {list(right)} overlap or are out of order")

    def decide(self, state: DecodeState) -> Decision:
        for low, high, k in self.ranges:
            if low <= state.num_running_requests <= high:
                return Decision(min(k, state.max_draft_tokens), "table")
        return Decision(0, "outside_table")


def compile_table(
    table: TickTable, *, acceptance: float, context_tokens: float, max_draft_tokens: int, max_batch: int
) -> list[Range]:
    """Return the best table a latency profile gives for one acceptance and one context.

    Args:
        table: Predicted tick seconds.
        acceptance: Per-token acceptance, 0 to 1.
        context_tokens: Mean context per sequence.
        max_draft_tokens: Largest k.
        max_batch: Last batch of the table.
    """
    tokens = [expected_tokens(acceptance, k) for k in range(max_draft_tokens + 1)]
    ranges: list[Range] = []
    for batch in range(1, max_batch + 1):
        seconds = table.by_length(batch, context_tokens)
        k = max(range(max_draft_tokens + 1), key=lambda k: tokens[k] / seconds[k])
        if ranges and ranges[-1][2] == k:
            ranges[-1] = (ranges[-1][0], batch, k)
        else:
            ranges.append((batch, batch, k))
    return ranges


def table_from_lists(rows: Sequence[Sequence[int]]) -> BatchTable:
    """Return a rule from JSON-like rows.

    Raises:
        ConfigError: a row is not three integers.
    """
    for row in rows:
        if len(row) != 3 or any(isinstance(n, bool) or not isinstance(n, int) for n in row):
            raise ConfigError(f"batch table entry {row!r} must be three integers [first, last, k]")
    return BatchTable(tuple((row[0], row[1], row[2]) for row in rows))


def make(inputs: RuleInputs, argument: str) -> Rule:
    """Make `batch_table`, compiled from the latency table; or `batch_table:[[1,8,7],[9,32,3]]`, as it is."""
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
        max_batch=_MAX_BATCH,
    )
    return BatchTable(tuple(ranges))
