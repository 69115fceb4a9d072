"""Acceptance is estimated per position, forgotten when it changed, and doubted when it may have."""

from collections.abc import Callable

import numpy as np
import pytest
from controller_support import counts

from efficient_rollout.controller.acceptance import AcceptanceEstimator


def test_the_estimate_is_a_beta_posterior_whose_positions_lean_on_each_other() -> None:
    estimator = AcceptanceEstimator(2, prior_acceptance=0.75)
    assert estimator.expected_tokens() == [1.0, 1.75, 1.75 + 0.75**2]
    estimator.observe((8, 4), (4, 2))
    pooled = (6 + 0.75 * 16) / (12 + 16)
    assert estimator.pooled() == pooled
    assert estimator.by_position() == [(4 + pooled * 16) / (8 + 16), (2 + pooled * 16) / (4 + 16)]
    assert estimator.standard_error() == pytest.approx(beta_sd(6 + 12, 6 + 4))
    first, second = estimator.by_position()
    assert estimator.expected_tokens() == [1.0, 1.0 + first, 1.0 + first + first * second]


def beta_sd(a: float, b: float) -> float:
    return ((a * b) / ((a + b) ** 2 * (a + b + 1))) ** 0.5


@pytest.mark.parametrize(
    ("event", "kept"), [(AcceptanceEstimator.mark_stale, 0.1), (AcceptanceEstimator.mark_old, 0.25)]
)
def test_of_old_counts_a_share_is_kept(event: Callable[[AcceptanceEstimator], None], kept: float) -> None:
    estimator = AcceptanceEstimator(1, prior_acceptance=0.75)
    estimator.observe((80,), (40,))
    before = estimator.expected_tokens()[1]
    event(estimator)
    assert estimator.pooled() == pytest.approx((40 * kept + 12) / (80 * kept + 16))
    assert estimator.expected_tokens()[1] > before, "nearer to the prior"


def test_no_more_than_4000_attempts_are_remembered() -> None:
    estimator = AcceptanceEstimator(1, prior_acceptance=0.5)
    for _ in range(500):
        estimator.observe((80,), (40,))
    assert estimator.standard_error() == pytest.approx((0.25 / 4017) ** 0.5, rel=0.01)
    for _ in range(50):
        estimator.observe((80,), (41,))
    assert estimator.pooled() == pytest.approx(0.5 + 0.0125 * (1 - 0.98**50), abs=0.001), "a slow drift is followed"


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


@pytest.mark.parametrize(("accepted", "restarts"), [(68, False), (56, True)], ids=["3 errors off", "6 errors off"])
def test_a_change_is_sudden_where_chance_cannot_explain_it(accepted: int, restarts: bool) -> None:
    estimator = AcceptanceEstimator(1, prior_acceptance=0.9)
    for _ in range(100):
        estimator.observe((100,), (80,))
    estimator.observe((100,), (accepted,))
    assert (estimator.pooled() == accepted / 100) == restarts
