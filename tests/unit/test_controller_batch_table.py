"""Tables from batch size to draft tokens."""

from controller_support import a100_ticks, state

from efficient_rollout.controller.batch_table import BatchTable
from efficient_rollout.controller.registry import RuleInputs, make_rule
from efficient_rollout.cost_model.speedup import expected_tokens


def test_a_compiled_table_drafts_less_in_larger_batches() -> None:
    rule = make_rule("batch_table", RuleInputs(max_draft_tokens=7, table=a100_ticks(), prior_acceptance=0.9))
    assert isinstance(rule, BatchTable)
    assert rule.decide(state(1)).num_draft_tokens >= 3
    assert rule.decide(state(128)).num_draft_tokens == 0
    assert expected_tokens(0.9, rule.ranges[0][2]) > 2.5
