"""The rule that follows the cost model: what it chooses, and when it doubts."""

from collections.abc import Callable

import numpy as np
import pytest
from controller_support import KnownTicks, a100_ticks, state

from efficient_rollout.controller.cost_model_rule import CostModelRule, CostModelRuleSettings
from efficient_rollout.controller.exploration import ExplorationSettings
from efficient_rollout.controller.inputs import RuleInputs
from efficient_rollout.controller.observation import SpeedupSums, TickObservation
from efficient_rollout.controller.registry import make_rule
from efficient_rollout.controller.state import Decision
from efficient_rollout.cost_model.speedup import expected_tokens
from efficient_rollout.rule_table import RULES

CURIOUS = CostModelRuleSettings(exploration=ExplorationSettings(time_share=1e9, tick_share=1.0))


def observe(rule: CostModelRule, k: int, seconds: float | None, tries: int = 10) -> None:
    """A tick of one request (or of as many as make the tries) in which nine of ten drafts are accepted."""
    rule.observe(TickObservation(num_draft_tokens=k, num_requests=1, mean_context_tokens=1024.0,
                   attempts_per_position=(tries,) * k, accepted_per_position=(tries * 9 // 10,) * k,
                   num_tokens=1, seconds=seconds))  # fmt: skip


def choice(rule: CostModelRule) -> Decision:
    """The next decision that does not explore."""
    while (decision := rule.decide(state(1))).reason == "explore":
        continue
    return decision


def bursts(rule: CostModelRule, table: KnownTicks, num_ticks: int) -> list[int]:
    """Ticks, from 1, at which exploring begins; every tick takes its time."""
    found, explored = [], False
    for tick in range(1, num_ticks + 1):
        decision = rule.decide(state(1))
        if decision.reason == "explore" and not explored:
            found.append(tick)
        explored = decision.reason == "explore"
        observe(rule, decision.num_draft_tokens, table.seconds[decision.num_draft_tokens])
    return found


@pytest.mark.parametrize(("batch", "expected"), [(1, 7), (128, 0)])
def test_cost_model_drafts_in_small_batches_and_not_in_large_ones(batch: int, expected: int) -> None:
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


def test_cost_model_decodes_plainly_while_prompts_are_computed() -> None:
    rule = CostModelRule(a100_ticks(), 7)
    assert rule.decide(state(1, prefill=1)) == Decision(0, "prefill")
    assert rule.decide(state(0)) == Decision(0, "idle")


@pytest.mark.parametrize("slowness", [1.0, 1.5])
def test_predicted_against_measured_speed_up(slowness: float) -> None:
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


def test_the_speed_up_is_told_with_seconds_as_they_were_corrected() -> None:
    rule = CostModelRule(KnownTicks(1.0, 1.5), 1)
    for _ in range(100):
        observe(rule, 1, 3.0)
    rule.take_speedup()
    observe(rule, 1, 3.0)
    sums = rule.take_speedup()
    assert sums.predicted_tick_seconds == pytest.approx(3.0, rel=0.02)
    assert sums.measured_plain_seconds == pytest.approx(2.0, rel=0.2), "a machine that is slower altogether"


def test_plain_and_prefill_ticks_say_nothing_of_the_speed_up() -> None:
    table = a100_ticks()
    rule = CostModelRule(table, 7)
    for k, prefill in ((0, False), (0, False), (4, True), (4, True)):
        rule.observe(TickObservation(num_draft_tokens=k, num_requests=2, mean_context_tokens=1024.0, num_tokens=8,
                       seconds=0.02, had_prefill=prefill))  # fmt: skip
    assert rule.take_speedup() == SpeedupSums()
    for name in set(RULES) - {"cost_model"}:
        assert make_rule(name, RuleInputs(max_draft_tokens=7, table=table)).take_speedup() is None


def test_prefill_ticks_do_not_teach_seconds() -> None:
    rule = CostModelRule(a100_ticks(), 7)
    for _ in range(20):
        rule.observe(TickObservation(num_draft_tokens=0, num_requests=8, mean_context_tokens=1024.0, seconds=0.05,
                       had_prefill=True))  # fmt: skip
    assert rule.correction.version == 0


@pytest.mark.parametrize(("predicted_s", "true_s", "k"), [(1.0, 3.0, 0), (3.0, 1.0, 1)])
def test_what_ticks_really_take_decides(predicted_s: float, true_s: float, k: int) -> None:
    rule = CostModelRule(KnownTicks(1.0, predicted_s), 1)
    for _ in range(20):
        observe(rule, 0, 1.0)
    for _ in range(20):
        observe(rule, 1, true_s)
    assert choice(rule) == Decision(k, "drafting_is_faster" if k else "plain_is_faster")


def test_a_smaller_limit_than_the_present_length_is_kept() -> None:
    rule = CostModelRule(KnownTicks(1.0, 1.0, 1.0), 2)
    assert choice(rule).num_draft_tokens == 2
    assert rule.decide(state(1, limit=1)) == Decision(1, "hold")


def test_drafting_that_pays_only_with_luck_is_left_until_acceptance_is_known() -> None:
    rule = CostModelRule(KnownTicks(1.0, 1.87), 1)
    assert choice(rule) == Decision(0, "unsure"), "1.9 tokens in 1.87 s, if acceptance is what is assumed"
    observe(rule, 1, None, tries=300)
    assert choice(rule) == Decision(1, "drafting_is_faster")
    rule.mark_stale()
    assert choice(rule) == Decision(0, "unsure"), "new weights may be accepted less"


@pytest.mark.parametrize(
    ("plain_promise", "promise", "expected"),
    [
        (0.5, 1.005, Decision(1, "hold")),
        (0.5, 1.02, Decision(2, "drafting_is_faster")),
        (1.0005, 1.008, Decision(2, "drafting_is_faster")),
    ],
    ids=["one per cent is not promised", "more is", "what is held would lose against plain decoding"],
)
def test_another_length_must_promise_one_per_cent_more(
    plain_promise: float, promise: float, expected: Decision
) -> None:
    table = KnownTicks(1.0, 1.0, 9.0)
    rule = CostModelRule(table, 2)
    observe(rule, 2, None, tries=10_000)
    assert choice(rule) == Decision(1, "drafting_is_faster")
    held = 1.9
    table.seconds[0], table.seconds[2] = 1.0 / (held * plain_promise), 2.71 / (held * promise)
    assert choice(rule) == expected


def test_plain_decoding_is_held_to_as_well() -> None:
    rule = CostModelRule(KnownTicks(1.0, 1.9 / 1.007), 1)
    observe(rule, 1, None, tries=10_000)
    assert choice(rule) == Decision(0, "hold")


def a_length_takes_another_time(rule: CostModelRule) -> None:
    for _ in range(2):  # the first tick of a length is not learned from
        observe(rule, 2, 30.0)


@pytest.mark.parametrize("event", [CostModelRule.mark_stale, a_length_takes_another_time])
def test_new_weights_and_other_seconds_make_it_curious_again(event: Callable[[CostModelRule], None]) -> None:
    table = KnownTicks(1.0, 1.5, 10.0)
    calm, disturbed = CostModelRule(table, 2, CURIOUS), CostModelRule(table, 2, CURIOUS)
    for rule in (calm, disturbed):
        *_, before, last = bursts(rule, table, 660)
        assert (before, last) == (389, 647), "the patience it ends with"
    event(disturbed)
    assert len(bursts(disturbed, table, 100)) == 1
    assert bursts(calm, table, 100) == []


@pytest.mark.parametrize(("tick_s", "forgets"), [(3.0, True), (1.5, False)], ids=["drafting", "plain decoding"])
def test_what_drafts_taught_counts_for_less_once_drafting_is_tried_again(tick_s: float, forgets: bool) -> None:
    table = KnownTicks(1.0, tick_s)
    rule = CostModelRule(table, 1, CURIOUS)
    bursts(rule, table, 10)
    before = rule.acceptance.standard_error()
    assert "explore" in [rule.decide(state(1)).reason for _ in range(140)]
    assert (rule.acceptance.standard_error() > 1.3 * before) == forgets


def test_time_that_passed_pays_for_exploring_and_a_clock_that_jumps_does_not() -> None:
    rule = CostModelRule(KnownTicks(1.0, 0.5), 1)
    observe(rule, 1, 1e6)
    assert rule.decide(state(1)).reason != "explore", "a burst of plain ticks would lose 2.2 s"
    rule.observe(TickObservation(num_draft_tokens=1, num_requests=1, mean_context_tokens=1024.0, num_ticks=400))
    assert rule.decide(state(1)) == Decision(0, "explore")
