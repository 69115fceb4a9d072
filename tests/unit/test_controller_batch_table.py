"""Tables from batch size to draft tokens."""

import json
from itertools import pairwise

import pytest
from controller_support import KnownTicks, a100_ticks, state

from efficient_rollout.controller.batch_table import BatchTable, compile_table, make
from efficient_rollout.controller.rule import Decision, RuleInputs
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.cost_model.speedup import expected_tokens
from efficient_rollout.errors import ConfigError


def compiled(table: TickTable, max_draft_tokens: int) -> tuple[tuple[int, int, int], ...]:
    return compile_table(RuleInputs(max_draft_tokens=max_draft_tokens, table=table), max_batch=128).ranges


def test_a_table_answers_with_the_range_that_holds_the_batch():
    rule = BatchTable(((2, 4, 5), (5, 9, 2)))
    assert [rule.decide(state(batch)).num_draft_tokens for batch in (2, 4, 5, 9)] == [5, 5, 2, 2]
    assert rule.decide(state(3, limit=3)) == Decision(3, "table")
    for outside in (1, 10):
        assert rule.decide(state(outside)) == Decision(0, "outside_table")


def test_a_compiled_table_drafts_less_in_larger_batches():
    ranges = compiled(a100_ticks(), 7)
    assert (ranges[0][0], ranges[-1][1]) == (1, 128)
    assert all(right[0] == left[1] + 1 and right[2] != left[2] for left, right in pairwise(ranges))
    assert ranges[0][2] >= 3
    assert BatchTable(ranges).decide(state(128)).num_draft_tokens == 0


@pytest.mark.parametrize("best", [0, 1, 2])
def test_a_compiled_table_has_the_k_with_the_most_tokens_per_second(best):
    seconds = [expected_tokens(0.9, k) * (0.9 if k == best else 1.0) for k in range(3)]
    assert compiled(KnownTicks(*seconds), 2) == ((1, 128, best),)


@pytest.mark.parametrize(
    "rows",
    [[[0, 4, 1]], [[3, 2, 1]], [[1, 4, -1]], [[1, 4, 2], [4, 9, 1]], [[5, 9, 1], [1, 4, 2]], [[1, 4]], [[1, 4, True]]],
)
def test_a_malformed_table_is_refused(rows):
    with pytest.raises(ConfigError, match=r"batch table entr|three integers each"):
        make(RuleInputs(max_draft_tokens=7), json.dumps(rows))
