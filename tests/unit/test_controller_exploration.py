"""Alternatives are tried when they may have become better, and within what trying may cost."""

from dataclasses import replace

import pytest

from efficient_rollout.controller.exploration import Exploration, ExplorationSettings, Outlook
from efficient_rollout.cost_model.correction import OnlineCorrection

UNBOUNDED = {"time_share": 1e9, "tick_share": 1.0}
TICK_S, BEST_RATE = 0.25, 40.0


def outlook(*shares: float, batch: int = 1, acceptance: float = 0.5) -> Outlook:
    """Of a tick whose lengths promise these shares of a rate; the best one is chosen."""
    best = max(range(len(shares)), key=shares.__getitem__)
    rates, seconds = [BEST_RATE * share for share in shares], [TICK_S] * len(shares)
    return Outlook(batch=batch, best=best, rates=rates, seconds=seconds, acceptance=acceptance)


def explorer(timed: tuple[int, ...] = (), *, num_ticks: int = 10, **settings: float) -> Exploration:
    """One that knows the seconds of the lengths in `timed`, just measured at batch 1."""
    made = Exploration(OnlineCorrection(), 4, ExplorationSettings(**settings))
    for k in timed:
        for _ in range(num_ticks):
            made.correction.observe(k, 1, TICK_S, TICK_S)
        made.note_timed(k, 1, 0.0)
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


@pytest.mark.parametrize("view", [outlook(1.0, 1.01, 0.9), outlook(1.0, 0.9, 0.99)], ids=["of plain", "of drafting"])
def test_an_octave_without_ticks_of_a_kind_gets_some_at_once_and_more_soon(view: Outlook) -> None:
    k = 0 if view.best else 2
    exploration = explorer((view.best,), **UNBOUNDED)
    assert tried(exploration, view, 30) == [(1, k), (13, k), (25, k)]
    assert tried(exploration, replace(view, batch=2), 5) == [(1, k)], "another octave has its own"


@pytest.mark.parametrize(("timed", "first"), [((0, 1, 2), 12), ((0, 1, 2, 4), 64)])
def test_three_drafting_ticks_of_any_length_are_enough_to_be_patient(timed: tuple[int, ...], first: int) -> None:
    exploration = explorer(timed, num_ticks=1, **UNBOUNDED)
    assert tried(exploration, outlook(1.0, 0.9, 0.99), 64)[0] == (first, 2)


def test_where_nothing_may_be_drafted_nothing_is_tried() -> None:
    assert tried(explorer(**UNBOUNDED), outlook(1.0), 200) == []


@pytest.mark.parametrize(("risen", "num_ticks"), [(0.58, 256), (0.62, 32)])
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
    # A burst of plain ticks loses three ticks' time; the credit is one tick's.
    assert tried(explorer((1,), tick_share=1.0), outlook(0.0, 1.0), 900) == [(201, 0), (501, 0), (801, 0)]
    assert tried(explorer((1,), tick_share=1.0), outlook(0.75, 1.0), 2) == [(1, 0)]


def test_at_most_two_per_cent_of_the_ticks_explore_and_one_burst_more() -> None:
    assert tried(explorer((1,)), outlook(1.0, 1.0 + 1e-9), 449) == [(1, 0), (150, 0), (300, 0)]
