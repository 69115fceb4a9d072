"""A timeline stays small however long the rollout, and loses no second of it."""

import itertools
import json
import random
from typing import Any

import pytest

from efficient_rollout.controller.observation import TickSpan
from efficient_rollout.errors import InputFileError
from efficient_rollout.metrics import timeline
from efficient_rollout.metrics.timeline import MAX_BINS, MAX_ENGINES, Bin, StepTimelines

TICK_SECONDS = 1 / 128


def spans(num_ticks: int, *, seed: int = 0, start_s: float = 1000.0) -> list[TickSpan]:
    """Ticks of binary fractions of a second, so that sums are exact, with idle times of up to a second between some."""
    draw, now, found = random.Random(seed), start_s, []
    for _ in range(num_ticks):
        seconds = draw.randint(1, 4) * TICK_SECONDS
        now += seconds + (draw.random() < 0.01) * draw.randint(0, 128) * TICK_SECONDS
        found.append(TickSpan(end_s=now, seconds=seconds, num_requests=draw.randint(1, 64),
                              num_draft_tokens=draw.randint(0, 5)))  # fmt: skip
    return found


def timeline_of(ticks: list[TickSpan]) -> list[Bin]:
    bins: list[Bin] = []
    for tick in ticks:
        timeline.add_tick(bins, tick)
    return bins


def exact_seconds(ticks: list[TickSpan]) -> list[float]:
    return [sum(tick.seconds for tick in ticks if tick.num_draft_tokens == length) for length in range(6)]


@pytest.mark.parametrize("num_ticks", [100, MAX_BINS, MAX_BINS + 1, 20_000])
def test_a_timeline_is_bounded_and_keeps_the_seconds_of_every_draft_length(num_ticks: int) -> None:
    ticks = spans(num_ticks)
    bins: list[Bin] = []
    most = 0
    for tick in ticks:
        timeline.add_tick(bins, tick)
        most = max(most, len(bins))
    assert most <= MAX_BINS
    assert timeline.seconds_by_length(bins) == exact_seconds(ticks)
    requests = sum(tick.seconds * tick.num_requests for tick in ticks)
    assert sum(one[timeline.REQUEST_SECONDS] for one in bins) == requests
    assert (bins[0][timeline.START], bins[-1][timeline.END]) == (ticks[0].end_s - ticks[0].seconds, ticks[-1].end_s)


def test_parts_that_arrive_one_after_another_keep_a_resolution_that_is_the_same_early_and_late() -> None:
    ticks, total = spans(20_000), []
    for start in range(0, len(ticks), 32):
        total = timeline.joined([total, timeline_of(ticks[start : start + 32])])
        assert len(total) <= MAX_BINS
    assert timeline.seconds_by_length(total) == exact_seconds(ticks)
    whole = total[-1][timeline.END] - total[0][timeline.START]
    assert max(one[timeline.END] - one[timeline.START] for one in total) <= whole / 64
    assert len(total) > 64


def test_bins_are_in_order_and_do_not_overlap() -> None:
    bins = timeline_of(spans(5_000))
    assert all(before[timeline.END] <= after[timeline.START] for before, after in itertools.pairwise(bins))


def test_joining_neither_minds_the_order_nor_changes_its_parts() -> None:
    early, late = timeline_of(spans(20)), timeline_of(spans(20, seed=1, start_s=2000.0))
    before = json.dumps([early, late])
    both = timeline.joined([late, early])
    assert both == timeline.joined([early, late])
    both[0][timeline.START] = -1.0
    assert json.dumps([early, late]) == before


def test_a_step_keeps_the_engines_that_ran_longest_each_from_its_own_zero() -> None:
    engines = {str(number): timeline_of(spans(10 * number, start_s=1e6 * number)) for number in range(1, 8)}
    step = StepTimelines.of(4, engines | {"idle": []})
    assert (step.step, step.num_engines, len(step.engines)) == (4, 7, MAX_ENGINES)
    assert [bins[0][timeline.START] for bins in step.engines] == [0.0] * MAX_ENGINES
    assert [timeline.seconds_by_length(bins) for bins in step.engines] == [
        timeline.seconds_by_length(engines[str(number)]) for number in (7, 6, 5, 4)
    ]
    assert StepTimelines.from_dict(json.loads(json.dumps(step.to_dict()))) == step


WHOLE: dict[str, Any] = {
    "step": 1, "num_engines": 1, "engines": [[[0.0, 1.0, 4.0, 1.0]]], "lanes": [[[0.0, 1.0, 5]]], "num_responses": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "raw",
    [
        [],
        {},
        WHOLE | {"more": 1},
        WHOLE | {"step": "1"},
        WHOLE | {"engines": {}},
        WHOLE | {"num_responses": "1"},
        WHOLE | {"lanes": []},
        WHOLE | {"lanes": [{}]},
        WHOLE | {"lanes": [[[0.0]]]},
        WHOLE | {"engines": [[]]},
        WHOLE | {"engines": [[[0.0, 1.0, 4.0]]]},
        WHOLE | {"engines": [[[0.0, "1", 4.0, 1.0]]]},
        WHOLE | {"engines": [[[0.0, float("nan"), 4.0, 1.0]]]},
        WHOLE | {"engines": [[[0.0, -1.0, 4.0, 1.0]]]},
    ],
)
def test_what_is_no_timeline_is_refused(raw: Any) -> None:
    assert StepTimelines.from_dict(WHOLE).step == 1
    with pytest.raises(InputFileError, match="not the timelines of a step"):
        StepTimelines.from_dict(raw)


def test_steps_that_are_kept_for_good_are_powers_of_two() -> None:
    assert [step for step in range(-4, 70) if timeline.is_sampled(step)] == [1, 2, 4, 8, 16, 32, 64]
