"""What ticks teach about their seconds, and what they cannot."""

import numpy as np
import pytest

from efficient_rollout.cost_model.correction import OnlineCorrection


def test_correction_finds_the_true_seconds_and_shrugs_off_stalls() -> None:
    correction, rng = OnlineCorrection(), np.random.default_rng(3)
    for i in range(200):
        seconds = 0.030 * float(np.exp(0.03 * rng.standard_normal()))
        correction.observe(4, 8, 0.010, seconds)
        if i % 40 == 39:
            for nonsense in (2.0, -5.0, float("nan"), 0.0, None):
                correction.observe(4, 8, 0.010, nonsense)
    assert np.exp(correction.log_factor(4, 8)) == pytest.approx(3.0, rel=0.03)
    assert np.exp(correction.log_factor(5, 8)) == pytest.approx(3.0, rel=0.1), "an untimed length borrows"


def test_what_one_batch_taught_fades_with_the_distance_of_another() -> None:
    correction = OnlineCorrection()
    for _ in range(200):
        assert correction.observe(7, 1, 1.0, 0.5)
    learned = [correction.log_factor(7, batch) / np.log(0.5) for batch in (1, 2, 4, 8, 16, 32)]
    assert learned[0] > 0.95
    assert learned[1] > 0.7, "the next octave is much alike"
    assert learned[5] < 0.4, "thirty sequences are not one"
    assert learned == sorted(learned, reverse=True)
    # Ticks of its own soon outweigh what neighbours say.
    for _ in range(20):
        correction.observe(7, 2, 1.0, 2.0)
    assert correction.log_factor(7, 2) > 0.6 * np.log(2.0)
    assert correction.log_factor(7, 1) == pytest.approx(np.log(0.5), abs=0.1)


def test_a_lasting_change_is_believed() -> None:
    correction = OnlineCorrection()
    for _ in range(200):
        correction.observe(0, 8, 0.010, 0.010)
    for _ in range(400):
        correction.observe(0, 8, 0.010, 0.100)
    assert np.exp(correction.log_factor(0, 8)) > 5.0


def test_a_tick_far_off_is_believed_at_the_fifth_in_a_row() -> None:
    correction = OnlineCorrection()
    assert correction.observe(0, 8, 0.010, 0.010)
    far_off = [correction.observe(0, 8, 0.010, 0.100) for _ in range(4)]
    assert far_off == [False] * 4
    assert correction.observe(0, 8, 0.010, 0.010), "an ordinary tick ends the row"
    assert [correction.observe(0, 8, 0.010, 0.100) for _ in range(5)] == [False] * 4 + [True]
