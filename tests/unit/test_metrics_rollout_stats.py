"""Statistics of several engines add up to what one engine would have counted."""

import json
import random
from dataclasses import fields, replace
from typing import Any

import pytest

from efficient_rollout.controller.rule import SpeedupSums
from efficient_rollout.controller.tick import FinishedTick, TickSpan, VerifiedDrafts
from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_stats import RolloutStats, Tally

KEEPS_LARGEST = {"weight_sync_seconds", "requantize_seconds", "num_weight_syncs", "drafter_bytes", "weights_checksum"}
KEEPS_SMALLEST = {"packed_weight_share", "proven_weight_share", "is_as_sent"}


def tick(*passes: tuple[int, int], num_emitted_tokens: int = 1, **more: Any) -> FinishedTick:
    """A tick in which requests had (drafted, accepted) draft tokens verified."""
    verified = VerifiedDrafts()
    for drafted, accepted in passes:
        verified.add(drafted, num_sampled_tokens=accepted + 1, num_emitted_tokens=accepted + 1)
    told = {"reason": "below", "speedup": None, "is_drafter_stale": False, **more}
    return FinishedTick(num_emitted_tokens=num_emitted_tokens, verified=verified, **told)


def random_stats(seed: int) -> RolloutStats:
    """One engine's statistics, with durations that are sums of binary fractions and so add exactly."""
    draw = random.Random(seed)
    stats = RolloutStats(num_engines=1)
    for _ in range(draw.randint(1, 50)):
        num_drafts = draw.randint(0, 6)
        passes = [(num_drafts, draw.randint(0, num_drafts))] if num_drafts else []
        speedup = random_speedup(draw) if num_drafts else None
        reason, num_tokens = draw.choice(["below", "above"]), draw.randint(1, 9)
        stats.add_tick(tick(*passes, num_emitted_tokens=num_tokens, reason=reason, speedup=speedup))
        stats.draft_seconds += draw.randint(0, 64) / 64
    return stats


def random_speedup(draw: random.Random) -> SpeedupSums:
    return SpeedupSums(**{item.name: draw.randint(1, 64) / 64 for item in fields(SpeedupSums)})


@pytest.mark.parametrize("seed", range(5))
def test_merge_adds_every_count_exactly(seed):
    parts = [random_stats(seed * 10 + engine) for engine in range(4)]
    merged = RolloutStats.merge(parts)
    for item in fields(RolloutStats):
        values = [getattr(part, item.name) for part in parts]
        if item.name in KEEPS_LARGEST | KEEPS_SMALLEST:
            continue
        if isinstance(values[0], list):
            length = max(map(len, values))
            expected: object = [sum(value[i] for value in values if i < len(value)) for i in range(length)]
        elif isinstance(values[0], dict):
            expected = {key: sum(value.get(key, 0) for value in values) for key in {k for v in values for k in v}}
        else:
            expected = sum(values)
        assert getattr(merged, item.name) == expected, item.name


def test_merge_keeps_the_slowest_engine_of_what_runs_side_by_side():
    fast = RolloutStats(weight_sync_seconds=1.0, requantize_seconds=0.5, num_weight_syncs=1, drafter_bytes=10)
    slow = RolloutStats(weight_sync_seconds=3.0, requantize_seconds=0.25, num_weight_syncs=1, drafter_bytes=20)
    fast.weights_checksum = 7
    merged = RolloutStats.merge([fast, slow])
    assert {name: getattr(merged, name) for name in KEEPS_LARGEST} == {
        "weight_sync_seconds": 3.0,
        "requantize_seconds": 0.5,
        "num_weight_syncs": 1,
        "drafter_bytes": 20,
        "weights_checksum": 7,
    }


def test_merge_keeps_the_smallest_share_of_the_engines_that_have_one():
    shares = [None, 0.75, 0.0, None, 1.0]
    parts = [RolloutStats(num_engines=1, packed_weight_share=share) for share in shares]
    assert RolloutStats.merge(parts).to_metrics()[names.PACKED_WEIGHT_SHARE] == 0.0
    assert RolloutStats.merge(parts[:2]).to_metrics()[names.PACKED_WEIGHT_SHARE] == 0.75
    assert names.PACKED_WEIGHT_SHARE not in RolloutStats.merge([parts[0], parts[3]]).to_metrics()


def test_what_the_last_sync_left_stays_until_the_next():
    tally, totals = Tally(num_engines=1), []
    for checksum in (None, 7, None, 9, None):
        tally.recent.weights_checksum = checksum
        tally.take()
        totals.append(tally.total().weights_checksum)
    assert totals == [None, 7, 7, 9, 9]


def test_merge_does_not_change_or_share_its_parts():
    parts = [random_stats(1), random_stats(2)]
    before = [part.to_dict() for part in parts]
    merged = RolloutStats.merge(parts)
    merged.add_tick(tick((9, 9)))
    merged.ticks_by_reason["below"] += 5
    assert [part.to_dict() for part in parts] == before


def test_merge_order_and_grouping_do_not_matter():
    a, b, c = (random_stats(seed) for seed in (3, 4, 5))
    left = RolloutStats.merge([RolloutStats.merge([a, b]), c])
    right = RolloutStats.merge([c, RolloutStats.merge([b, a])])
    assert left == right


def test_ratios_are_weighted_by_tokens_not_by_engines():
    busy, idle = RolloutStats(num_engines=1), RolloutStats(num_engines=1)
    for _ in range(99):
        busy.add_tick(tick((4, 4)))
    idle.add_tick(tick((4, 0)))
    metrics = RolloutStats.merge([busy, idle]).to_metrics()
    assert metrics[names.ACCEPTANCE_RATE] == pytest.approx(396 / 400)
    assert metrics[names.MEAN_ACCEPTED_LENGTH] == pytest.approx(1 + 396 / 100)
    assert metrics[names.NUM_ENGINES] == 2


def test_an_engine_that_never_drafted_dilutes_no_ratio_of_drafts():
    drafting, plain = RolloutStats(), RolloutStats(num_ticks=1000, num_generated_tokens=5000)
    drafting.add_tick(tick((4, 2)))
    alone = drafting.to_metrics()
    merged = RolloutStats.merge([drafting, plain]).to_metrics()
    for name in (names.ACCEPTANCE_RATE, names.MEAN_ACCEPTED_LENGTH):
        assert merged[name] == alone[name]


def test_speed_ups_are_weighted_by_seconds_not_by_engines():
    slow, fast = RolloutStats(num_engines=1), RolloutStats(num_engines=1)
    for _ in range(3):
        slow.add_speedup(SpeedupSums(predicted_plain_seconds=4.0, predicted_tick_seconds=2.0,
                                     measured_plain_seconds=3.0, measured_tick_seconds=3.0))  # fmt: skip
    fast.add_speedup(SpeedupSums(predicted_plain_seconds=4.0, predicted_tick_seconds=1.0,
                                 measured_plain_seconds=2.0, measured_tick_seconds=1.0))  # fmt: skip
    metrics = RolloutStats.merge([slow, fast, RolloutStats(num_engines=1)]).to_metrics()
    assert metrics[names.PREDICTED_SPEEDUP] == pytest.approx((12.0 + 4.0) / (6.0 + 1.0))
    assert metrics[names.MEASURED_SPEEDUP] == pytest.approx((9.0 + 2.0) / (9.0 + 1.0))


def test_acceptance_is_reported_by_position_of_the_verified_drafts():
    stats = RolloutStats()
    for drafted, accepted in ((3, 3), (3, 1), (2, 0), (1, 1)):
        stats.add_tick(tick((drafted, accepted)))
    rates = {
        name: rate for name, rate in stats.to_metrics().items() if name.startswith(names.ACCEPTANCE_RATE_AT_PREFIX)
    }
    assert rates == {
        names.ACCEPTANCE_RATE_AT_PREFIX + "1": pytest.approx(3 / 4),
        names.ACCEPTANCE_RATE_AT_PREFIX + "2": pytest.approx(1 / 3),
        names.ACCEPTANCE_RATE_AT_PREFIX + "3": pytest.approx(1 / 2),
    }


def test_ratio_without_a_denominator_is_absent():
    metrics = RolloutStats(num_engines=1).to_metrics()
    ratios = {
        names.ACCEPTANCE_RATE,
        names.MEAN_ACCEPTED_LENGTH,
        names.SPECULATIVE_TICK_SHARE,
        names.TOKENS_PER_SECOND,
        names.ROLLOUT_SECONDS,
        names.WEIGHT_SYNC_SECONDS,
        names.REQUANTIZE_SECONDS,
        names.PREDICTED_SPEEDUP,
        names.MEASURED_SPEEDUP,
    }
    assert not ratios & set(metrics)


def test_every_metric_is_what_its_name_says():
    stats = RolloutStats(num_engines=2, num_ticks=10, num_speculative_ticks=4, num_generated_tokens=90,
                         ticks_by_reason={"below": 4, "above": 6}, draft_seconds=0.5, weight_sync_seconds=3.0,
                         requantize_seconds=0.75, num_weight_syncs=1, drafter_bytes=1000, num_drafter_faults=1,
                         num_stale_drafters=2, is_uncertified=1, num_verify_passes=2, num_draft_tokens=8,
                         num_accepted_tokens=4)  # fmt: skip
    stats.add_speedup(SpeedupSums(predicted_plain_seconds=3.0, predicted_tick_seconds=2.0,
                                  measured_plain_seconds=1.0, measured_tick_seconds=0.5))  # fmt: skip
    assert stats.to_metrics(rollout_seconds=5.0) == {
        names.NUM_ENGINES: 2,
        names.ENGINE_TICKS: 10,
        names.SPECULATIVE_TICK_SHARE: 0.4,
        names.GENERATED_TOKENS: 90,
        names.DRAFT_TOKENS: 8,
        names.ACCEPTED_TOKENS: 4,
        names.ACCEPTED_BEHIND_END: 0,
        names.ACCEPTANCE_RATE: 0.5,
        names.MEAN_ACCEPTED_LENGTH: 3.0,
        names.DRAFT_SECONDS: 0.5,
        names.DRAFTER_BYTES: 1000,
        names.DRAFTER_FAULTS: 1,
        names.STALE_DRAFTER: 2,
        names.UNCERTIFIED: 1,
        names.REASON_SHARE_PREFIX + "below": 0.4,
        names.REASON_SHARE_PREFIX + "above": 0.6,
        names.PREDICTED_SPEEDUP: 1.5,
        names.MEASURED_SPEEDUP: 2.0,
        names.WEIGHT_SYNC_SECONDS: 3.0,
        names.REQUANTIZE_SECONDS: 0.75,
        names.ROLLOUT_SECONDS: 5.0,
        names.TOKENS_PER_SECOND: 18.0,
    }


def test_every_reported_name_is_declared():
    stats = random_stats(7)
    stats.num_weight_syncs = 1
    reported = stats.to_metrics(rollout_seconds=2.0)
    assert [name for name in reported if not names.is_declared(name)] == []
    assert reported[names.TOKENS_PER_SECOND] == stats.num_generated_tokens / 2.0
    shares = [value for name, value in reported.items() if name.startswith(names.REASON_SHARE_PREFIX)]
    assert sum(shares) == pytest.approx(1.0)


def test_a_tick_adds_what_it_verified_and_emitted():
    stats = RolloutStats()
    stats.add_tick(tick((2, 1), num_emitted_tokens=2))
    stats.add_tick(tick((4, 3), (4, 0), num_emitted_tokens=5))
    stats.add_tick(tick(num_emitted_tokens=3, reason="above", is_drafter_stale=True))
    assert stats.drafted_per_position == [3, 3, 2, 2]
    assert stats.accepted_per_position == [2, 1, 1, 0]
    assert (stats.num_verify_passes, stats.num_draft_tokens, stats.num_accepted_tokens) == (3, 10, 4)
    assert (stats.num_ticks, stats.num_speculative_ticks, stats.num_generated_tokens) == (3, 2, 10)
    assert stats.ticks_by_reason == {"below": 2, "above": 1}
    assert stats.num_stale_drafters == 1
    stats.add_tick(tick())
    assert stats.num_stale_drafters == 0, "as of the last tick"


def span(end_s: float, num_draft_tokens: int = 0) -> TickSpan:
    return TickSpan(end_s=end_s, seconds=0.5, num_requests=2, num_draft_tokens=num_draft_tokens)


def test_a_timeline_goes_on_within_an_engine_and_stays_apart_between_engines():
    early, late, other = RolloutStats(), RolloutStats(), RolloutStats()
    early.add_tick(tick(span=span(1.0)), engine="a")
    late.add_tick(tick(span=span(1.5, num_draft_tokens=1)), engine="a")
    late.add_tick(tick(), engine="a")
    other.add_tick(tick(span=span(1.25)), engine="b")
    merged = RolloutStats.merge([late, other, early])
    expected = {"a": [[0.5, 1.0, 1.0, 0.5], [1.0, 1.5, 1.0, 0.0, 0.5]], "b": [[0.75, 1.25, 1.0, 0.5]]}
    assert merged.timelines == expected
    assert RolloutStats.from_dict(json.loads(json.dumps(merged.to_dict()))) == merged
    merged.timelines["a"][0][0] = -1.0
    assert early.timelines == {"a": [[0.5, 1.0, 1.0, 0.5]]}


def test_round_trip_through_json():
    stats = random_stats(8)
    assert RolloutStats.from_dict(json.loads(json.dumps(stats.to_dict()))) == stats
    with pytest.raises(TypeError, match="unexpected"):
        RolloutStats.from_dict({"unknown": 1})


def test_the_ranks_of_one_engine_count_once():
    first = RolloutStats(
        num_engines=1, num_ticks=5, num_draft_tokens=8, drafter_bytes=100, weight_sync_seconds=1.0, num_weight_syncs=1,
        requantize_seconds=0.5, draft_seconds=0.25, packed_weight_share=0.9, drafted_per_position=[4, 4],
    )  # fmt: skip
    second = replace(first, drafter_bytes=120, weight_sync_seconds=3.0, requantize_seconds=0.25, draft_seconds=0.5)
    expected = replace(first, drafter_bytes=220, weight_sync_seconds=3.0, draft_seconds=0.5)
    assert RolloutStats.of_ranks([first, second]) == expected
    assert RolloutStats.of_ranks([first]) == first


def test_one_engine_s_record_goes_on():
    earlier = RolloutStats(
        num_engines=1, num_ticks=5, num_weight_syncs=2, weight_sync_seconds=0.5, requantize_seconds=0.25,
        ticks_by_reason={"below": 5}, drafter_bytes=10, num_stale_drafters=1, timelines={"a": [[0.0, 1.0, 1.0, 1.0]]},
    )  # fmt: skip
    later = RolloutStats(
        num_engines=1, num_ticks=3, num_weight_syncs=1, weight_sync_seconds=0.125, requantize_seconds=0.0625,
        ticks_by_reason={"above": 3}, drafter_bytes=20, packed_weight_share=0.5,
    )  # fmt: skip
    assert earlier.followed_by(later) == RolloutStats(
        num_engines=1, num_ticks=8, num_weight_syncs=3, weight_sync_seconds=0.625, requantize_seconds=0.3125,
        ticks_by_reason={"above": 3, "below": 5}, drafter_bytes=20, packed_weight_share=0.5,
    )  # fmt: skip
    assert earlier.timelines, "the parts stay as they are"


def test_a_tally_is_taken_once_and_keeps_the_total_and_the_last_ticks_state():
    tally = Tally(num_engines=1)
    tally.recent.num_ticks, tally.recent.num_draft_tokens, tally.recent.num_stale_drafters = 3, 12, 1
    assert tally.total().num_draft_tokens == 12
    assert (tally.take().num_draft_tokens, tally.take().num_draft_tokens) == (12, 0)
    assert tally.take().num_stale_drafters == 0, "of a time without ticks nothing is said"
    total = tally.total(drafter_bytes=7)
    assert (total.num_ticks, total.num_draft_tokens, total.num_stale_drafters, total.drafter_bytes) == (3, 12, 1, 7)
    tally.recent.num_ticks = 1
    assert tally.total().num_stale_drafters == 0, "new weights have mended it"
