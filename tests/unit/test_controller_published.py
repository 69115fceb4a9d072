"""The published rule: a one-way switch, and a ladder with patience."""

import pytest
from controller_support import KnownTicks, a100_ticks, state

from efficient_rollout.controller.published import Published
from efficient_rollout.controller.rule import Decision, TickObservation
from efficient_rollout.cost_model.speedup import expected_tokens
from efficient_rollout.errors import ConfigError

ALWAYS_PAYS = KnownTicks(*[1.0] * 12)


def ladder(rule: Published, *accepted_of_100: int) -> list[int]:
    """Lengths after rollouts with these acceptances in per cent."""
    lengths = []
    for accepted in accepted_of_100:
        rule.observe(TickObservation(num_draft_tokens=5, num_requests=1, mean_context_tokens=1.0,
                       attempts_per_position=(100,), accepted_per_position=(accepted,)))  # fmt: skip
        rule.mark_stale()
        lengths.append(rule.length)
    return lengths


def test_the_switch_is_one_way_within_a_rollout():
    rule = Published(a100_ticks(), acceptance=0.98)
    assert rule.decide(state(128)) == Decision(0, "below_threshold")
    assert rule.decide(state(4)) == Decision(5, "switched_on")
    assert rule.decide(state(128)) == Decision(5, "switched_on")
    rule.mark_stale()
    assert rule.decide(state(128)) == Decision(0, "below_threshold"), "a new rollout starts switched off"
    assert rule.decide(state(0)) == Decision(0, "idle")


@pytest.mark.parametrize(
    ("states", "reasons"),
    [
        ([state(31), state(32)], ["ramp_up", "switched_on"]),
        ([state(8), state(8), state(7)], ["ramp_up", "ramp_up", "switched_on"]),
        ([state(1)], ["switched_on"]),
        ([state(2)], ["ramp_up"]),
        ([state(40, waiting=1), state(40)], ["ramp_up", "switched_on"]),
        ([state(40, prefill=1), state(40)], ["ramp_up", "switched_on"]),
    ],
)
def test_nothing_is_drafted_before_the_batch_has_ramped_up(states, reasons):
    rule = Published(ALWAYS_PAYS)
    for _ in range(2):
        assert [rule.decide(now).reason for now in states] == reasons
        rule.mark_stale()


@pytest.mark.parametrize(("speedup", "k"), [(1.04, 0), (1.06, 5)])
def test_drafting_must_promise_five_per_cent(speedup, k):
    seconds = expected_tokens(0.9, 5) / speedup
    assert Published(KnownTicks(1.0, *[seconds] * 11)).decide(state(1)).num_draft_tokens == k


def test_the_ladder_moves_after_two_rollouts_that_agree():
    assert ladder(Published(ALWAYS_PAYS), 99, 99, 99, 99, 80, 99, 80, 80) == [5, 7, 7, 9, 9, 9, 9, 7]
    assert ladder(Published(ALWAYS_PAYS), 94, 90, 94, 94) == [5, 5, 5, 7], "94 % is enough, and must not be interrupted"
    assert ladder(Published(ALWAYS_PAYS, length=9), 85, 86, 85, 85) == [9, 9, 9, 7]
    assert ladder(Published(ALWAYS_PAYS, length=11), 99, 99) == [11, 11]
    assert ladder(Published(ALWAYS_PAYS), 80, 80) == [5, 5]


def test_a_rollout_without_drafts_says_nothing_of_the_length():
    rule = Published(ALWAYS_PAYS, acceptance=0.99)
    for _ in range(4):
        rule.mark_stale()
    assert (rule.length, rule.acceptance) == (5, 0.99)


def test_a_length_off_the_ladder_is_refused():
    with pytest.raises(ConfigError, match=r"choose one of \[5, 7, 9, 11\]"):
        Published(ALWAYS_PAYS, length=6)
