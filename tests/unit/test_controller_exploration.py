"""Alternatives are tried when they may have become better, and within what trying may cost."""

import pytest

from efficient_rollout.controller.exploration import Exploration, ExplorationSettings, Outlook
from efficient_rollout.cost_model.correction import OnlineCorrection

UNBOUNDED = {"time_share": 1e9, "tick_share": 1.0}
LEARNED_TICKS = 10


def outlook(*rates: float, seconds: float = 1.0, batch: int = 1, acceptance: float = 0.5) -> Outlook:
    """Of a tick whose best k has the highest rate."""
    best = max(range(len(rates)), key=rates.__getitem__)
    return Outlook(batch=batch, best=best, rates=rates, seconds=[seconds] * len(rates), acceptance=acceptance)


def explorer(timed: tuple[int, ...] = (), *, batch: int = 1, **settings: float) -> Exploration:
    """One that knows the seconds of the lengths in `timed`, just measured."""
    made = Exploration(OnlineCorrection(), 4, ExplorationSettings(**settings))
    for k in timed:
        for _ in range(LEARNED_TICKS):
            made.correction.observe(k, batch, 1.0, 1.0)
        made.note_timed(k, batch, 0.0)
    return made


def tried(exploration: Exploration, view: Outlook, num_ticks: int) -> list[tuple[int, int]]:
    """(tick, k) of each burst that starts, ticks numbered from 1; no tick teaches anything."""
    found = []
    for tick in range(1, num_ticks + 1):
        if exploration.next_tick(len(view.rates) - 1) is None:
            k = exploration.start_burst(view)
            found += [] if k is None else [(tick, k)]
        exploration.elapse(view.seconds[view.best])
    return found


def test_a_burst_lasts_three_ticks_and_waits_where_it_may_not_draft_so_much() -> None:
    exploration = explorer()
    assert exploration.next_tick(2) is None
    assert exploration.start_burst(outlook(1.0, 0.8, 0.9)) == 2
    assert [exploration.next_tick(limit) for limit in (1, 2, 2, 2)] == [None, 2, 2, None]


def test_the_other_kind_of_tick_is_tried_less_and_less_often_while_nothing_changes() -> None:
    for view, k in ((outlook(1.0, 1.01), 0), (outlook(1.0, 0.98, 0.99), 2)):
        found = tried(explorer((0, 1, 2), **UNBOUNDED), view, 800)
        assert found == [(64, k), (64 + 128, k), (64 + 128 + 256, k), (64 + 128 + 2 * 256, k)]


@pytest.mark.parametrize(("log_change", "num_ticks"), [(0.0, 256), (0.09, 256), (-0.11, 64)])
def test_a_tick_that_took_another_time_makes_it_curious_again(log_change: float, num_ticks: int) -> None:
    exploration, view = explorer((0, 1), **UNBOUNDED), outlook(1.0, 1.01)
    tried(exploration, view, 448)
    exploration.note_timed(1, 1, log_change)
    assert tried(exploration, view, 300)[0] == (num_ticks, 0)


def test_new_weights_make_it_curious_again() -> None:
    exploration, view = explorer((0, 1), **UNBOUNDED), outlook(1.0, 1.01)
    tried(exploration, view, 448)
    exploration.mark_stale()
    assert tried(exploration, view, 300)[0] == (64, 0)


def test_an_octave_with_few_ticks_of_a_kind_gets_more_soon() -> None:
    exploration = explorer((1,), **UNBOUNDED)
    assert tried(exploration, outlook(1.0, 1.01), 30) == [(1, 0), (13, 0), (25, 0)]
    assert tried(exploration, outlook(1.0, 1.01, batch=2), 5) == [(1, 0)], "another octave has its own"


@pytest.mark.parametrize(("risen", "num_ticks"), [(0.55, 256), (0.65, 32)])
def test_drafting_is_tried_again_soon_where_acceptance_rose_since_the_last_try(risen: float, num_ticks: int) -> None:
    exploration = explorer((0, 1), **UNBOUNDED)
    tried(exploration, outlook(1.0, 0.99, acceptance=0.5), 448)
    first, second, *_ = tried(exploration, outlook(1.0, 0.99, acceptance=risen), 600)
    assert second[0] - first[0] == num_ticks


def test_a_promising_length_that_was_never_timed_is_tried_once_in_64_ticks() -> None:
    exploration, rates = explorer((1,), tick_share=1.0), (0.0, 1.0, 0.7, 0.85, 0.9)
    assert tried(exploration, outlook(*rates), 64) == [(64, 4)]
    exploration.correction.observe(4, 1, 1.0, 1.0)
    assert tried(exploration, outlook(*rates), 64) == [(64, 3)]
    exploration.correction.observe(3, 1, 1.0, 1.0)
    assert tried(exploration, outlook(*rates), 64) == [], "2 promises too little"
    assert tried(exploration, outlook(*rates, batch=2), 1) == [(1, 4)], "another octave has its own"


def test_at_most_one_per_cent_of_the_time_is_lost_and_a_little_on_credit() -> None:
    # A burst of plain ticks loses 3 s; of the credit there is 1 s.
    assert tried(explorer((1,), tick_share=1.0), outlook(0.0, 1.0), 900) == [(201, 0), (501, 0), (801, 0)]
    assert tried(explorer((1,), tick_share=1.0), outlook(0.75, 1.0), 2) == [(1, 0)]


def test_at_most_two_per_cent_of_the_ticks_explore_and_one_burst_more() -> None:
    assert tried(explorer((1,)), outlook(1.0, 1.0 + 1e-9), 449) == [(1, 0), (150, 0), (300, 0)]
