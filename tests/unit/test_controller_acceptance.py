"""Acceptance is averaged per position since the weights came, and positions hardly tried lean on the others."""

import numpy as np
import pytest

from efficient_rollout.controller.acceptance import AcceptanceAverages


def test_averages_begin_at_what_is_assumed_and_positions_lean_on_each_other() -> None:
    averages = AcceptanceAverages(2, prior_acceptance=0.75)
    assert averages.expected_tokens() == [1.0, 1.75, 1.75 + 0.75**2]
    averages.observe((8, 4), (4, 2))
    pooled = (6 + 0.75 * 16) / (12 + 16)
    first, second = averages.by_position()
    assert (first, second) == ((4 + pooled * 16) / (8 + 16), (2 + pooled * 16) / (4 + 16))
    assert averages.expected_tokens() == [1.0, 1.0 + first, 1.0 + first + first * second]


def test_other_weights_are_learned_from_the_beginning() -> None:
    averages = AcceptanceAverages(1, prior_acceptance=0.75)
    averages.observe((800,), (0,))
    assert averages.by_position()[0] < 0.05
    averages.forget()
    assert averages.by_position() == [0.75]


def test_no_more_than_4000_attempts_count() -> None:
    averages = AcceptanceAverages(1, prior_acceptance=0.5)
    for _ in range(500):
        averages.observe((80,), (40,))
    for _ in range(50):
        averages.observe((80,), (41,))
    expected = 0.5 + 0.0125 * (1 - 0.98**50)
    assert averages.by_position()[0] == pytest.approx(expected, abs=0.001), "a slow drift is followed"


def test_acceptance_is_recovered_per_position() -> None:
    averages, rng = AcceptanceAverages(4, prior_acceptance=0.5), np.random.default_rng(0)
    truth = (0.95, 0.9, 0.8, 0.6)
    for _ in range(500):
        attempts, accepted, reached = [], [], 8
        for probability in truth:
            attempts.append(reached)
            reached = int(rng.binomial(reached, probability))
            accepted.append(reached)
        averages.observe(tuple(attempts), tuple(accepted))
    np.testing.assert_allclose(averages.by_position(), truth, atol=0.04)
