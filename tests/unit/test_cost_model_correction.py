"""What ticks teach about their seconds, and what they cannot."""

import math

import numpy as np
import pytest

from efficient_rollout.cost_model.correction import OnlineCorrection

LOG_2 = math.log(2.0)


def taught(num_ticks: int, *, k: int = 4, batch: int = 8, ratio: float = 2.0) -> OnlineCorrection:
    """One that saw so many ticks take `ratio` times their predicted seconds."""
    correction = OnlineCorrection()
    for _ in range(num_ticks):
        assert correction.observe(k, batch, 0.010, 0.010 * ratio)
    return correction


@pytest.mark.parametrize("num_ticks", [1, 9])
def test_the_profile_weighs_as_much_as_one_tick(num_ticks: int) -> None:
    assert taught(num_ticks).log_factor(4, 8) == pytest.approx(LOG_2 * num_ticks / (num_ticks + 1))


def test_no_more_than_200_ticks_are_remembered() -> None:
    correction = taught(1000)
    assert correction.num_ticks(4, 8) == 200
    for _ in range(200):
        correction.observe(4, 8, 0.010, 0.0205)
    assert correction.log_factor(4, 8) == pytest.approx(LOG_2 + math.log(1.025) * (1 - math.exp(-1)), abs=0.005)


def test_a_blip_moves_what_calm_ticks_taught_by_a_bounded_amount() -> None:
    correction = taught(1000)
    before = correction.log_factor(4, 8)
    assert correction.observe(4, 8, 0.010, 0.100)
    assert correction.log_factor(4, 8) - before == pytest.approx(0.08 / 201)


def test_a_length_that_was_never_timed_borrows_from_its_neighbours_the_nearest_most() -> None:
    correction = taught(9)
    for _ in range(9):
        correction.observe(8, 8, 0.010, 0.005)
    # Neighbours at distances 1 and 3, of opposite signs.
    near, far = 9 / (1 + 1) ** 2, 9 / (1 + 3) ** 2
    assert correction.log_factor(5, 8) == pytest.approx(LOG_2 * (near - far) / (near + far + 1))
    assert correction.log_factor(0, 8) > 0.0, "plain decoding was not timed: the machine may be slower altogether"
    correction.observe(0, 8, 0.010, 0.010)
    assert correction.log_factor(0, 8) == pytest.approx(0.0)


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
    correction = taught(200, k=7, batch=1, ratio=0.5)
    learned = [correction.log_factor(7, batch) / -LOG_2 for batch in (1, 2, 4, 8, 16, 32)]
    # Weights 200, 4, 4, 2, 1 and 0.5 against the profile's 1.
    assert learned == pytest.approx([200 / 201, 4 / 5, 4 / 5, 2 / 3, 1 / 2, 1 / 3])
    # Ticks of its own soon outweigh what neighbours say.
    for _ in range(20):
        correction.observe(7, 2, 1.0, 2.0)
    assert correction.log_factor(7, 2) > 0.6 * LOG_2
    assert correction.log_factor(7, 1) == pytest.approx(-LOG_2, abs=0.1)


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
