"""The rule that follows the cost model: what it chooses, and what it tells of its speed-up."""

import numpy as np
import pytest
from controller_support import KnownTicks, a100_ticks, state

from efficient_rollout.controller.cost_model_rule import AcceptanceAverages, CostModelRule
from efficient_rollout.controller.rule import Decision, DraftCounts, RuleInputs, SpeedupSums, TickObservation, make_rule
from efficient_rollout.cost_model.speedup import expected_tokens
from efficient_rollout.rule_table import RULES


def observe(rule: CostModelRule, k: int, accepted: int, tries: int = 100) -> None:
    """A tick in which so many of the drafts at each position were accepted."""
    rule.observe(TickObservation(num_draft_tokens=k, num_requests=1, mean_context_tokens=1024.0,
                   attempts_per_position=(tries,) * k, accepted_per_position=(accepted,) * k,
                   num_tokens=1, seconds=1.0))  # fmt: skip


@pytest.mark.parametrize(("batch", "expected"), [(1, 7), (128, 0)])
def test_cost_model_drafts_in_small_batches_and_not_in_large_ones(batch, expected):
    table = a100_ticks()
    rule = make_rule("cost_model", RuleInputs(max_draft_tokens=7, table=table, prior_acceptance=0.99))
    choices = []
    for _ in range(40):
        decision = rule.decide(state(batch, limit=7))
        k = decision.num_draft_tokens
        seconds = float(table.by_length(batch, 1024.0)[k])
        rule.observe(TickObservation(num_draft_tokens=k, num_requests=batch, mean_context_tokens=1024.0,
                       attempts_per_position=(batch,) * k, accepted_per_position=(batch,) * k,
                       seconds=seconds))  # fmt: skip
        choices.append(k)
    assert np.median(choices) == expected


def test_cost_model_decodes_plainly_while_prompts_are_computed():
    rule = CostModelRule(a100_ticks(), 7)
    assert rule.decide(state(1, prefill=1)) == Decision(0, "prefill")
    assert rule.decide(state(0)) == Decision(0, "idle")


@pytest.mark.parametrize("slowness", [1.0, 1.5])
def test_predicted_against_measured_speed_up(slowness):
    table = a100_ticks()
    rule = CostModelRule(table, 7)
    plain_s, tick_s = (float(table.by_length(2, 1024.0)[k]) for k in (0, 4))
    for _ in range(2):  # the first tick of a length is not learned from
        rule.observe(TickObservation(num_draft_tokens=4, num_requests=2, mean_context_tokens=1024.0, num_tokens=7,
                       seconds=slowness * tick_s))  # fmt: skip
    sums = rule.take_speedup()
    assert sums.predicted_plain_seconds == pytest.approx(expected_tokens(0.9, 4) * plain_s)
    assert sums.predicted_tick_seconds == pytest.approx(tick_s)
    assert sums.measured_plain_seconds == pytest.approx(7 / 2 * plain_s)
    assert sums.measured_tick_seconds == pytest.approx(slowness * tick_s)
    assert rule.take_speedup() == SpeedupSums(), "taken once"


def test_plain_and_prefill_ticks_say_nothing_of_the_speed_up():
    table = a100_ticks()
    rule = CostModelRule(table, 7)
    for k, prefill in ((0, False), (0, False), (4, True), (4, True)):
        rule.observe(TickObservation(num_draft_tokens=k, num_requests=2, mean_context_tokens=1024.0, num_tokens=8,
                       seconds=0.02, had_prefill=prefill))  # fmt: skip
    assert rule.take_speedup() == SpeedupSums()
    for name in set(RULES) - {"cost_model"}:
        assert make_rule(name, RuleInputs(max_draft_tokens=7, table=table)).take_speedup() is None


@pytest.mark.parametrize(("accepted", "decision"), [(90, (1, "drafting_is_faster")), (40, (0, "plain_is_faster"))])
def test_what_was_accepted_decides(accepted, decision):
    rule = CostModelRule(KnownTicks(1.0, 1.6), 1)
    for _ in range(20):
        observe(rule, 1, accepted)
    assert rule.decide(state(1)) == Decision(*decision)


def test_new_weights_are_drafted_for_again():
    rule = CostModelRule(KnownTicks(1.0, 1.6), 1)
    for _ in range(20):
        observe(rule, 1, 0)
    assert rule.decide(state(1)).num_draft_tokens == 0
    rule.mark_stale()
    assert rule.decide(state(1)).num_draft_tokens == 1, "as much is assumed of them as of the first"


def test_the_limit_of_a_tick_is_kept():
    rule = CostModelRule(KnownTicks(1.0, 1.0, 1.0), 2)
    assert rule.decide(state(1)).num_draft_tokens == 2
    assert rule.decide(state(1, limit=1)).num_draft_tokens == 1


def test_copies_that_stand_make_longer_drafts_pay():
    table = a100_ticks()
    chosen = {}
    for num_kept in (0, 1500):
        rule = CostModelRule(table, 11)
        for _ in range(20):
            drafting = DraftCounts(num_passes=1000, num_chains_fed=1000, num_copies=3000, num_copies_kept=num_kept)
            rule.observe(TickObservation(num_draft_tokens=4, num_requests=8, mean_context_tokens=1024.0,
                           attempts_per_position=(100,) * 11, accepted_per_position=(90,) * 11,
                           drafting=drafting))  # fmt: skip
        chosen[num_kept] = rule.decide(state(8)).num_draft_tokens
    assert chosen[1500] > chosen[0]


def test_copies_cost_rows_and_save_passes():
    table = a100_ticks()
    alone, more = table.by_length(2, 1024.0), table.by_length(8, 1024.0)
    _, draft, verify = table.model.pass_seconds(11, 2, np.array([1024.0]))
    rows = table.model.pass_seconds(11, 8, np.array([1024.0]))[1]
    copying = table.by_length(2, 1024.0, checked=3.0, kept=1.0)
    assert copying[0] == alone[0]
    assert copying[4] == pytest.approx(2 * float(rows[3, 0]) + float(verify[3, 0]), rel=0.01)
    assert alone[4] == pytest.approx(4 * float(draft[3, 0]) + float(verify[3, 0]), rel=0.01)
    assert more[4] > alone[4]


def test_averages_begin_at_what_is_assumed_and_positions_lean_on_each_other():
    averages = AcceptanceAverages(2, prior_acceptance=0.75)
    assert averages.expected_tokens() == [1.0, 1.75, 1.75 + 0.75**2]
    averages.observe((8, 4), (4, 2))
    pooled = (6 + 0.75 * 16) / (12 + 16)
    first, second = averages.by_position()
    assert (first, second) == ((4 + pooled * 16) / (8 + 16), (2 + pooled * 16) / (4 + 16))
    assert averages.expected_tokens() == [1.0, 1.0 + first, 1.0 + first + first * second]


def test_other_weights_are_learned_from_the_beginning():
    averages = AcceptanceAverages(1, prior_acceptance=0.75)
    averages.observe((800,), (0,))
    assert averages.by_position()[0] < 0.05
    averages.forget()
    assert averages.by_position() == [0.75]


def test_no_more_than_4000_attempts_count():
    averages = AcceptanceAverages(1, prior_acceptance=0.5)
    for _ in range(500):
        averages.observe((80,), (40,))
    for _ in range(50):
        averages.observe((80,), (41,))
    expected = 0.5 + 0.0125 * (1 - 0.98**50)
    assert averages.by_position()[0] == pytest.approx(expected, abs=0.001), "a slow drift is followed"


def test_acceptance_is_recovered_per_position():
    averages, rng = AcceptanceAverages(4, prior_acceptance=0.5), np.random.default_rng(0)
    truth = (0.95, 0.9, 0.8, 0.6)
    for _ in range(500):
        attempts, accepted, reached = [], [], 8
        for probability in truth:
            attempts.append(reached)
            reached = int(rng.binomial(reached, probability))
            accepted.append(reached)
        averages.observe(tuple(attempts), tuple(accepted))
    np.testing.assert_allclose(averages.by_position(), truth, atol=0.04)
