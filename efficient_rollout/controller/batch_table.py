"""vLLM's own rule: a table from batch size to draft tokens, and how to make one from a latency profile."""

import json
from dataclasses import dataclass
from itertools import groupby, pairwise

from efficient_rollout.controller.rule import Decision, DecodeState, Rule, RuleInputs
from efficient_rollout.cost_model.speedup import expected_tokens
from efficient_rollout.errors import ConfigError

Range = tuple[int, int, int]
_REFERENCE_CONTEXT_TOKENS = 1024.0  # of a compiled table, which knows no context


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


def compile_table(inputs: RuleInputs, *, max_batch: int = 256) -> BatchTable:
    """Return the best table a latency profile gives for the acceptance that is assumed, and one context."""
    table, lengths = inputs.require_table("batch_table"), range(inputs.max_draft_tokens + 1)
    tokens = [expected_tokens(inputs.prior_acceptance, k) for k in lengths]

    def best(batch: int) -> int:
        seconds = table.by_length(batch, _REFERENCE_CONTEXT_TOKENS)
        return max(lengths, key=lambda k: tokens[k] / seconds[k])

    alike = [(k, list(batches)) for k, batches in groupby(range(1, max_batch + 1), best)]
    return BatchTable(tuple((batches[0], batches[-1], k) for k, batches in alike))


def make(inputs: RuleInputs, argument: str) -> Rule:
    """Make `batch_table`, compiled from the latency table; or `batch_table:[[1,8,7],[9,32,3]]`, as it is."""
    if not argument:
        return compile_table(inputs)
    try:
        rows = json.loads(argument)
    except json.JSONDecodeError as error:
        raise ConfigError(f"batch_table needs JSON such as [[1,8,7],[9,32,3]], got {argument!r}") from error
    if not isinstance(rows, list) or not all(_is_range(row) for row in rows):
        raise ConfigError(f"batch_table needs a list of [first, last, k], three integers each, got {argument!r}")
    return BatchTable(tuple(map(tuple, rows)))


def _is_range(row: object) -> bool:
    return isinstance(row, list) and len(row) == 3 and all(type(number) is int for number in row)
