"""A drafter that does not follow the policy is noticed; one that follows it badly is not called stale."""

import logging
import random

import pytest

from efficient_rollout.vllm_plugin.staleness import StalenessWatch


def feed(watch, acceptance, num_drafts, seed=0):
    draw = random.Random(seed)
    for _ in range(num_drafts):
        watch.observe(first_draft_accepted=draw.random() < acceptance)


@pytest.mark.parametrize("seed", range(20))
def test_unrelated_weights_are_noticed_within_two_windows_and_reported_once(seed, caplog):
    watch = StalenessWatch()
    with caplog.at_level(logging.ERROR):
        feed(watch, 0.1, 2000, seed)
    assert watch.is_stale
    assert len(caplog.records) == 1
    assert "drafter does not follow the policy" in caplog.text


@pytest.mark.parametrize("acceptance", [0.45, 0.7, 0.99])
def test_a_poor_drafter_is_not_a_stale_one(acceptance):
    for seed in range(20):
        watch = StalenessWatch()
        feed(watch, acceptance, 5000, seed)
        assert not watch.is_stale


def test_a_weight_sync_clears_it():
    watch = StalenessWatch()
    feed(watch, 0.0, 512)
    watch.reset()
    assert not watch.is_stale
    feed(watch, 0.9, 512)
    assert not watch.is_stale
