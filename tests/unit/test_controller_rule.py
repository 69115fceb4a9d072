"""Rules by name, and those without a latency model."""

import pytest
from controller_support import a100_ticks, state

from efficient_rollout.controller.rule import (
    Always,
    BatchThreshold,
    Decision,
    DraftCounts,
    Never,
    Rule,
    RuleInputs,
    make_rule,
)
from efficient_rollout.errors import ConfigError
from efficient_rollout.rule_table import RULES


def test_a_decision_never_exceeds_the_state_or_the_rule():
    for name in RULES:
        rule = make_rule(name, RuleInputs(max_draft_tokens=7, table=a100_ticks(), prior_acceptance=0.99))
        for _ in range(30):
            assert 0 <= rule.decide(state(2, limit=3)).num_draft_tokens <= 3


def test_the_registry_makes_every_rule_and_names_faults():
    inputs = RuleInputs(max_draft_tokens=7, table=a100_ticks())
    rules: dict[str, Rule] = {name: make_rule(name, inputs) for name in RULES}
    for rule in rules.values():
        rule.mark_stale()
    for given, used in ((None, 7), (2, 2)):
        typed = RuleInputs(max_draft_tokens=7, num_draft_tokens=given, max_running_requests=9)
        assert make_rule("always", typed) == Always(used)
        assert make_rule("batch_threshold", typed) == BatchThreshold(used, 9)
        assert make_rule("batch_threshold:3", typed) == BatchThreshold(3, 9), "an argument comes first"
    assert make_rule("always:4", inputs).decide(state(64)).num_draft_tokens == 4
    assert make_rule("batch_threshold:3,9", inputs).decide(state(10)).num_draft_tokens == 0
    assert [make_rule("batch_threshold", inputs).decide(state(n)).num_draft_tokens for n in (8, 9)] == [7, 0]
    assert make_rule("batch_table:[[1,4,5],[5,9,2]]", inputs).decide(state(7)).num_draft_tokens == 2
    with pytest.raises(ConfigError, match="choose one of never, always"):
        make_rule("magic", inputs)
    with pytest.raises(ConfigError, match="efficient-rollout calibrate"):
        make_rule("cost_model", RuleInputs(max_draft_tokens=7))
    with pytest.raises(ConfigError, match="drafts up to 12 tokens, the latency table has 11"):
        make_rule("cost_model", RuleInputs(max_draft_tokens=12, table=a100_ticks()))
    for bad in ("always:x", "never:3", "batch_table:[[1,4]]", "batch_table:[[1,4,2],[3,9,1]]", "published:6"):
        with pytest.raises(ConfigError):
            make_rule(bad, inputs)


@pytest.mark.parametrize(("running", "waiting", "k"), [(8, 0, 4), (9, 0, 0), (5, 3, 4), (5, 4, 0)])
def test_batch_threshold_counts_running_and_waiting_requests(running, waiting, k):
    decision = BatchThreshold(4, 8).decide(state(running, waiting=waiting))
    assert decision == Decision(k, "batch_below_threshold" if k else "batch_above_threshold")


def test_never_and_always_do_not_look_at_the_batch():
    for batch in (1, 300):
        assert Never().decide(state(batch)) == Decision(0, "never")
        assert Always(4).decide(state(batch)) == Decision(4, "always")


def test_counts_of_passes_add_up():
    counts = DraftCounts(num_passes=1, num_chains_fed=2, num_copies=3, num_copies_kept=4)
    counts.add(DraftCounts(num_passes=10, num_chains_fed=20, num_copies=30, num_copies_kept=40))
    assert counts == DraftCounts(num_passes=11, num_chains_fed=22, num_copies=33, num_copies_kept=44)
