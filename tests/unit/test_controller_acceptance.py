"""Acceptance is estimated per position, forgotten when it changed, and doubted when it may have."""

import numpy as np
import pytest
from controller_support import counts

from efficient_rollout.controller.acceptance import AcceptanceEstimator


def test_acceptance_is_recovered_per_position() -> None:
    estimator, rng = AcceptanceEstimator(4, prior_acceptance=0.5), np.random.default_rng(0)
    truth = (0.95, 0.9, 0.8, 0.6)
    for _ in range(500):
        attempts, accepted, reached = [], [], 8
        for probability in truth:
            attempts.append(reached)
            reached = int(rng.binomial(reached, probability))
            accepted.append(reached)
        estimator.observe(tuple(attempts), tuple(accepted))
    np.testing.assert_allclose(estimator.by_position(), truth, atol=0.04)
    assert estimator.standard_error() < 0.01


def test_a_collapse_of_acceptance_is_noticed_within_a_few_ticks() -> None:
    estimator, rng = AcceptanceEstimator(7), np.random.default_rng(1)
    for _ in range(300):
        estimator.observe(*counts(rng, 0.95, 8, 7))
    for _ in range(12):
        estimator.observe(*counts(rng, 0.0, 8, 7))
    assert estimator.expected_tokens()[7] < 1.6


def test_after_a_sudden_change_only_what_came_after_it_counts() -> None:
    estimator = AcceptanceEstimator(1, prior_acceptance=0.9)
    for _ in range(100):
        estimator.observe((100,), (95,))
    estimator.observe((100,), (0,))
    assert estimator.pooled() == 0.0
    assert estimator.by_position() == [0.0]
    # A few acceptances outweigh it: the short memory may have held tries from before the change.
    estimator.observe((6,), (6,))
    assert estimator.pooled() == 0.5


def test_chance_is_no_sudden_change() -> None:
    estimator, rng = AcceptanceEstimator(4, prior_acceptance=0.9), np.random.default_rng(4)
    for _ in range(3000):
        estimator.observe(*counts(rng, 0.8, 8, 4))
    assert estimator.prior_acceptance == 0.9, "never started again"
    assert estimator.pooled() == pytest.approx(0.8, abs=0.02)


def test_a_weight_sync_keeps_the_mean_and_widens_the_uncertainty() -> None:
    estimator, rng = AcceptanceEstimator(7), np.random.default_rng(2)
    for _ in range(50):
        estimator.observe(*counts(rng, 0.97, 8, 7))
    before, error = estimator.pooled(), estimator.standard_error()
    estimator.mark_stale()
    assert estimator.pooled() == pytest.approx(before, abs=0.02)
    assert estimator.standard_error() > 1.5 * error
