"""A timeline stays small however long the rollout, and loses no second of it."""

import itertools
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from efficient_rollout.controller.tick import TickSpan
from efficient_rollout.errors import InputFileError
from efficient_rollout.metrics import timeline
from efficient_rollout.metrics.rollout_record import MAX_ENGINES, MAX_STEP_LANES, StepTimelines
from efficient_rollout.metrics.rollout_stats import RolloutStats
from efficient_rollout.metrics.timeline import (
    ACCEPTED,
    DRAFTED,
    END,
    FIRST_PART,
    MAX_BINS,
    MAX_LANES,
    MAX_PARTS,
    PASSES,
    START,
    Bin,
    Lane,
    LaneRecorder,
    is_lane,
    parts_of,
)

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
def test_a_timeline_is_bounded_and_keeps_the_seconds_of_every_draft_length(num_ticks):
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
    assert (bins[0][START], bins[-1][END]) == (ticks[0].end_s - ticks[0].seconds, ticks[-1].end_s)


def test_parts_that_arrive_one_after_another_keep_a_resolution_that_is_the_same_early_and_late():
    ticks, total = spans(20_000), []
    for start in range(0, len(ticks), 32):
        total = timeline.joined([total, timeline_of(ticks[start : start + 32])])
        assert len(total) <= MAX_BINS
    assert timeline.seconds_by_length(total) == exact_seconds(ticks)
    whole = total[-1][END] - total[0][START]
    assert max(one[END] - one[START] for one in total) <= whole / 64
    assert len(total) > 64


def test_bins_are_in_order_and_do_not_overlap():
    bins = timeline_of(spans(5_000))
    assert all(before[END] <= after[START] for before, after in itertools.pairwise(bins))


def test_joining_neither_minds_the_order_nor_changes_its_parts():
    early, late = timeline_of(spans(20)), timeline_of(spans(20, seed=1, start_s=2000.0))
    before = json.dumps([early, late])
    both = timeline.joined([late, early])
    assert both == timeline.joined([early, late])
    both[0][START] = -1.0
    assert json.dumps([early, late]) == before


def test_a_step_keeps_the_engines_that_ran_longest_each_from_its_own_zero():
    engines = {str(number): timeline_of(spans(10 * number, start_s=1e6 * number)) for number in range(1, 8)}
    step = StepTimelines.of(4, engines | {"idle": []})
    assert (step.step, step.num_engines, len(step.engines)) == (4, 7, MAX_ENGINES)
    assert [bins[0][START] for bins in step.engines] == [0.0] * MAX_ENGINES
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
def test_what_is_no_timeline_is_refused(raw):
    assert StepTimelines.from_dict(WHOLE).step == 1
    with pytest.raises(InputFileError, match="not the timelines of a step"):
        StepTimelines.from_dict(raw)


def test_steps_that_are_kept_for_good_are_powers_of_two():
    assert [step for step in range(-4, 70) if timeline.is_sampled(step)] == [1, 2, 4, 8, 16, 32, 64]


class Engine:
    """Ticks of equal length; each tells of the passes of some requests."""

    def __init__(self, start_s: float = 1000.0) -> None:
        self.now = start_s
        self.recorder = LaneRecorder(lambda: self.now)

    def tick(self, passes: dict[str, tuple[int, int]], *, num: int = 1) -> None:
        for _ in range(num):
            self.now += TICK_SECONDS
            self.recorder.end_tick()
            for request, (drafted, accepted) in passes.items():
                self.recorder.add_pass(request, drafted, accepted)


def total(lane: Lane) -> list[float]:
    """Passes, drafts and accepted drafts of a lane."""
    parts = list(parts_of(lane))
    return [sum(part[place] for part in parts) for place in (PASSES, DRAFTED, ACCEPTED)]


def test_a_lane_holds_its_runs_of_equal_draft_length_and_nothing_of_plain_decoding():
    engine = Engine(0.0)
    engine.recorder.begin(["a"])
    engine.tick({}, num=128)
    engine.tick({"a": (4, 3)}, num=64)
    engine.tick({"a": (2, 1)}, num=64)
    engine.tick({}, num=64)
    engine.tick({"a": (2, 2)}, num=128)
    engine.tick({})
    lane = engine.recorder.end("a", 900)
    assert lane is not None
    assert lane[:FIRST_PART] == [0.0, 3.5 + TICK_SECONDS, 900]
    assert list(parts_of(lane)) == [
        [1.0, 1.5, 64, 256, 192],
        [1.5, 2.0, 64, 128, 64],
        [2.5, 3.5, 128, 256, 256],
    ]


@pytest.mark.parametrize("most_length", [1, 4, 8])
def test_a_response_of_a_million_tokens_is_few_numbers_and_loses_no_draft(most_length):
    draw, engine, told = random.Random(most_length), Engine(), [0, 0, 0]
    engine.recorder.begin(["a"])
    for _ in range(250_000):
        drafted = draw.randint(0, most_length)
        accepted = draw.randint(0, drafted)
        engine.tick({"a": (drafted, accepted)} if drafted else {})
        told = [told[0] + bool(drafted), told[1] + drafted, told[2] + accepted]
    lane = engine.recorder.end("a", 1_000_000)
    assert lane is not None
    parts = list(parts_of(lane))
    assert 12 <= len(parts) <= MAX_PARTS
    assert total(lane) == told
    assert max(part[END] - part[START] for part in parts) <= (lane[END] - lane[START]) / 12 + 1
    edges = [edge for part in parts for edge in part[:PASSES]]
    assert edges == sorted(edges)
    assert len(json.dumps(lane)) < 4000


def test_a_request_that_waits_is_preempted_or_aborted():
    engine = Engine(0.0)
    engine.recorder.begin(["a"])
    engine.tick({"a": (2, 0)}, num=2)
    engine.now += 10.0  # an idle engine, or a weight sync
    engine.recorder.begin(["late"])
    engine.recorder.begin(["a"])
    engine.tick({"late": (2, 1), "unknown": (2, 2)})
    late = engine.recorder.end("late", 2)
    assert late is not None
    start_s = 2 * TICK_SECONDS + 10.0
    assert late == [start_s, start_s + TICK_SECONDS, 2, start_s, start_s + TICK_SECONDS, 1, 2, 1]
    going_on = engine.recorder.end("a", 4)
    assert going_on is not None
    assert going_on[START] == 0.0, "scheduled again, it is the same response"
    assert engine.recorder.end("a", 4) is None, "it ends once"
    assert engine.recorder.end("never scheduled", 0) is None
    engine.now += 1.0
    engine.recorder.begin(["aborted"])
    assert engine.recorder.end("aborted", 0) == [engine.now, engine.now, 0]


def simple(ends: Sequence[float]) -> list[Lane]:
    return [[1.0, end, 7] for end in ends]


@pytest.mark.parametrize("num_lanes", [10, 2 * MAX_LANES, 2 * MAX_LANES + 1, 10_000])
def test_responses_are_bounded_and_those_that_ended_last_are_kept(num_lanes):
    ends = [2.0 + number for number in range(num_lanes)]
    random.Random(0).shuffle(ends)
    stats = RolloutStats()
    for lane in simple(ends):
        stats.add_lane(lane, engine="a")
        assert len(stats.lanes["a"]) <= 2 * MAX_LANES
    assert stats.num_responses == num_lanes
    kept = StepTimelines.of(1, {"a": [[0.0, 1.0, 1.0, 1.0]]}, stats.lanes, stats.num_responses)
    assert 0.75 * min(num_lanes, MAX_STEP_LANES) <= len(kept.lanes[0]) <= MAX_STEP_LANES
    latest = sorted(ends)[-MAX_STEP_LANES // 2 :]
    assert {lane[END] for lane in kept.lanes[0]} >= set(latest)
    assert (kept.num_responses, min(lane[END] for lane in kept.lanes[0]) < 0.1 * num_lanes + 3.0) == (
        num_lanes, True,
    )  # fmt: skip


def test_lanes_stay_apart_between_engines_and_share_the_bound():
    parts = []
    for engine in range(6):
        stats = RolloutStats(num_engines=1, timelines={str(engine): [[5.0, 6.0 + engine, 1.0, 1.0]]})
        for lane in simple([2.0 + engine + number / 1000 for number in range(300)]):
            stats.add_lane(lane, engine=str(engine))
        parts.append(stats)
    before = json.dumps([part.to_dict() for part in parts])
    merged = RolloutStats.merge(parts)
    assert json.dumps([part.to_dict() for part in parts]) == before
    assert RolloutStats.from_dict(json.loads(json.dumps(merged.to_dict()))) == merged
    step = StepTimelines.of(3, merged.timelines, merged.lanes, merged.num_responses)
    assert (step.num_engines, len(step.engines), len(step.lanes), step.num_responses) == (6, 4, 4, 1800)
    assert sum(map(len, step.lanes)) <= MAX_STEP_LANES
    assert len(step.lanes[0]) >= MAX_STEP_LANES // 2, "the others wait for that engine"
    assert step.engines[0][0][:2] == [4.0, 10.0], "an engine's zero is its first lane's start"
    assert {lane[START] for of_engine in step.lanes for lane in of_engine} == {0.0}
    assert StepTimelines.from_dict(json.loads(json.dumps(step.to_dict()))) == step


def test_lanes_are_no_part_of_what_is_kept_since_the_start():
    stats = RolloutStats()
    stats.add_lane([0.0, 1.0, 2], engine="a")
    assert (stats.followed_by(stats).lanes, stats.followed_by(stats).num_responses) == ({}, 2)


@pytest.mark.parametrize(
    "lane",
    [
        None, {}, [], [0.0, 1.0], [0.0, 1.0, 5, 1.0], [0.0, 1.0, "5"], [0.0, 1.0, float("nan")], [0.0, -1.0, 5],
        [0.0, 1e9, 5], [0.0, 1.0, 5, 0.0, 1.0, 1, 2, "<img src=x onerror=alert(1)>"],
    ],
)  # fmt: skip
def test_what_is_no_lane_is_none(lane):
    assert is_lane([0.0, 1.0, 5, 0.0, 1.0, 1, 4, 2])
    assert not is_lane(lane)
