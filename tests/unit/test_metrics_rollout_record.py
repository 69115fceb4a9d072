import pytest

from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_record import (
    VALIDATION_PREFIX,
    Segment,
    StepTimelines,
    step_metrics,
    step_timelines,
)
from efficient_rollout.metrics.rollout_stats import RolloutStats


def segment(*, tokens=0, drafts=0, accepted=0, ticks=0, syncs=0, sync_seconds=0.0, start=None, end=None, timelines=()):
    stats = RolloutStats(
        num_engines=1,
        num_ticks=ticks,
        num_generated_tokens=tokens,
        num_verify_passes=drafts,
        num_draft_tokens=4 * drafts,
        num_accepted_tokens=accepted,
        num_weight_syncs=syncs,
        weight_sync_seconds=sync_seconds,
        requantize_seconds=sync_seconds / 2,
        timelines=dict(timelines),
    )
    return Segment(stats, start, end)


def test_a_segment_survives_the_way_between_processes():
    original = segment(tokens=5, drafts=2, accepted=3, start=1.0, end=2.5)
    assert Segment.from_dict(original.to_dict()) == original


def test_a_step_without_validation_counts_everything():
    metrics = step_metrics(
        [[segment(tokens=100, ticks=10, start=10.0, end=14.0), segment(syncs=1, sync_seconds=0.5)]], validated=False
    )
    assert metrics[names.GENERATED_TOKENS] == 100
    assert metrics[names.ROLLOUT_SECONDS] == pytest.approx(4.0)
    assert metrics[names.TOKENS_PER_SECOND] == pytest.approx(25.0)
    assert metrics[names.WEIGHT_SYNC_SECONDS] == pytest.approx(0.5)
    assert not any(key.startswith(VALIDATION_PREFIX) for key in metrics)


def test_validation_is_reported_apart_from_training():
    training = segment(tokens=100, ticks=10, drafts=20, accepted=40, start=10.0, end=14.0)
    validation = segment(tokens=7, ticks=2, drafts=1, accepted=4, syncs=1, sync_seconds=0.5, start=20.0, end=21.0)
    metrics = step_metrics([[training, validation]], validated=True)
    assert metrics[names.GENERATED_TOKENS] == 100
    assert metrics[names.ACCEPTANCE_RATE] == pytest.approx(0.5)
    assert metrics[names.WEIGHT_SYNC_SECONDS] == pytest.approx(0.5)
    assert metrics[VALIDATION_PREFIX + "generated_tokens"] == 7
    assert metrics[VALIDATION_PREFIX + "acceptance_rate"] == pytest.approx(1.0)
    assert VALIDATION_PREFIX + "weight_sync_seconds" not in metrics


def test_validation_before_the_first_step_is_not_a_training_rollout():
    before_first_sync = segment()
    validation = segment(tokens=7, ticks=2, syncs=1, sync_seconds=0.5, start=20.0, end=21.0)
    metrics = step_metrics([[before_first_sync, validation]], validated=True)
    assert names.GENERATED_TOKENS not in metrics
    assert metrics[VALIDATION_PREFIX + "generated_tokens"] == 7


def test_several_engines_are_weighted_by_tokens():
    busy = segment(tokens=900, ticks=90, drafts=100, accepted=400, start=10.0, end=19.0)
    idle = segment(tokens=100, ticks=10, drafts=10, accepted=0, start=10.5, end=12.0)
    synced = [segment(syncs=1, sync_seconds=seconds) for seconds in (0.5, 0.7)]
    metrics = step_metrics([[busy, synced[0]], [idle, synced[1]]], validated=False)
    assert metrics[names.NUM_ENGINES] == 2
    assert metrics[names.ACCEPTANCE_RATE] == pytest.approx(400 / 440)
    assert metrics[names.MEAN_ACCEPTED_LENGTH] == pytest.approx(1 + 400 / 110)
    assert metrics[names.ROLLOUT_SECONDS] == pytest.approx(9.0)
    assert metrics[names.TOKENS_PER_SECOND] == pytest.approx(1000 / 9)
    assert metrics[names.WEIGHT_SYNC_SECONDS] == pytest.approx(0.7)


def test_a_job_without_our_engines_gets_no_metrics():
    assert step_metrics([], validated=False) == {}


def test_engines_behind_one_server_are_engines():
    two = Segment(RolloutStats.merge([segment(tokens=5).stats, segment(tokens=7).stats]), 1.0, 2.0)
    metrics = step_metrics([[two, two], [segment(tokens=3, start=1.0, end=2.0)]], validated=False)
    assert metrics[names.NUM_ENGINES] == 3
    assert metrics[names.GENERATED_TOKENS] == 27


def spread(metrics, quantity, prefix=names.PREFIX):
    keys = (f"{prefix}{kind}/{quantity}" for kind in ("engine_min", "engine_mean", "engine_max"))
    return [metrics[key] for key in keys]


def test_one_sick_engine_of_several_shows_beside_the_others():
    healthy = segment(tokens=900, ticks=90, drafts=100, accepted=300, start=10.0, end=19.0)
    sick = segment(tokens=100, ticks=100, drafts=50, accepted=10, start=10.0, end=20.0)
    metrics = step_metrics([[healthy, segment(syncs=1)], [sick, segment(syncs=1)]], validated=False)
    assert spread(metrics, "rollout_seconds") == pytest.approx([9.0, 9.5, 10.0])
    assert spread(metrics, "generated_tokens_per_second") == pytest.approx([10.0, 55.0, 100.0])
    assert spread(metrics, "engine_ticks") == [90, 95, 100]
    assert spread(metrics, "acceptance_rate") == pytest.approx([0.05, 0.4, 0.75])
    assert spread(metrics, "mean_accepted_length") == pytest.approx([1.2, 2.6, 4.0])
    assert {name for name in metrics if "/engine_" in name} == {
        names.over_engines(prefix, quantity)
        for prefix in (names.ENGINE_MIN_PREFIX, names.ENGINE_MEAN_PREFIX, names.ENGINE_MAX_PREFIX)
        for quantity in names.PER_ENGINE
    } | {names.ENGINE_TICKS}


def test_the_spread_is_over_the_engines_that_have_the_quantity_two_at_least():
    drafting = segment(tokens=900, ticks=90, drafts=100, accepted=300, start=10.0, end=19.0)
    idle = segment()
    metrics = step_metrics([[drafting], [idle]], validated=False)
    assert spread(metrics, "engine_ticks") == [0, 45, 90]
    assert not any(name.startswith(names.ENGINE_MIN_PREFIX) and "ticks" not in name for name in metrics)
    alone = step_metrics([[drafting]], validated=False)
    assert not any("/engine_m" in name for name in alone)


def test_the_spread_of_a_validation_is_its_own():
    def engine(*, tokens, validated):
        return [
            segment(tokens=tokens, ticks=10, start=10.0, end=11.0),
            segment(tokens=validated, ticks=1, syncs=1, start=20.0, end=21.0),
        ]

    metrics = step_metrics([engine(tokens=30, validated=5), engine(tokens=10, validated=7)], validated=True)
    assert spread(metrics, "generated_tokens_per_second") == pytest.approx([10.0, 20.0, 30.0])
    assert spread(metrics, "generated_tokens_per_second", VALIDATION_PREFIX) == pytest.approx([5.0, 6.0, 7.0])


def test_the_timeline_of_a_step_is_its_training_rollout_alone():
    bins = [[0.0, 1.0, 4.0, 1.0], [1.0, 2.0, 4.0, 1.0]]
    training = segment(ticks=1, start=10.0, end=14.0, timelines={"a": bins[:1]})
    later = segment(ticks=1, syncs=1, start=20.0, end=21.0, timelines={"a": bins[1:]})
    other = segment(ticks=1, start=10.0, end=14.0, timelines={"b": bins[:1]})
    engines = [[training, later], [other, segment(syncs=1)]]
    assert step_timelines(3, engines, validated=True) == StepTimelines.of(3, {"a": bins[:1], "b": bins[:1]})
    assert step_timelines(3, engines, validated=False) == StepTimelines.of(3, {"a": bins, "b": bins[:1]})
    assert step_timelines(3, [], validated=True).engines == []
