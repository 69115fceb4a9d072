import pytest

from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_record import VALIDATION_PREFIX, Segment, step_metrics, step_timelines
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


def test_the_timeline_of_a_step_is_its_training_rollout_alone():
    bins = [[0.0, 1.0, 4.0, 1.0], [1.0, 2.0, 4.0, 1.0]]
    training = segment(ticks=1, start=10.0, end=14.0, timelines={"a": bins[:1]})
    later = segment(ticks=1, syncs=1, start=20.0, end=21.0, timelines={"a": bins[1:]})
    other = segment(ticks=1, start=10.0, end=14.0, timelines={"b": bins[:1]})
    engines = [[training, later], [other, segment(syncs=1)]]
    assert step_timelines(engines, validated=True) == {"a": bins[:1], "b": bins[:1]}
    assert step_timelines(engines, validated=False) == {"a": bins, "b": bins[:1]}
    assert step_timelines([], validated=True) == {}
