"""The published rule: a one-way switch, and a ladder with patience."""

from controller_support import a100_ticks, state

from efficient_rollout.controller.observation import TickObservation
from efficient_rollout.controller.published import Published


def test_the_published_switch_is_one_way_and_its_ladder_has_patience() -> None:
    rule = Published(a100_ticks(), acceptance=0.98)
    assert rule.decide(state(128)).num_draft_tokens == 0
    assert rule.decide(state(4)).num_draft_tokens == 5
    assert rule.decide(state(128)).num_draft_tokens == 5, "stays on"
    lengths = []
    for accepted in (99, 99, 99, 99, 80, 99, 80, 80):
        rule.observe(TickObservation(num_draft_tokens=5, num_requests=1, mean_context_tokens=1.0,
                       attempts_per_position=(100,), accepted_per_position=(accepted,)))  # fmt: skip
        rule.mark_stale()
        lengths.append(rule.length)
    assert lengths == [5, 7, 7, 9, 9, 9, 9, 7]
    assert rule.decide(state(128)).num_draft_tokens == 0, "a new rollout starts switched off"
