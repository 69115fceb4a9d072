"""A verdict has a right to be one: intervals cover what is true, and few steps say nothing."""

from pathlib import Path

import numpy as np
import pytest
from report_support import write_run

pytest.importorskip("yaml")

from efficient_rollout.metrics import names
from efficient_rollout.training_runs.comparison import (
    MIN_STEPS,
    Estimate,
    difference,
    speed_verdicts,
    speedups,
    tokens_per_tick,
    unequal_load,
)
from efficient_rollout.training_runs.run import REWARD_MEAN, STEP_SECONDS, Run, read_run


def run_of(rollout_s: list[float], tokens: list[float] | None = None) -> Run:
    """Steps from 1 with these rollout seconds; the whole step takes 1 s more."""
    records = [
        {"step": step, names.ROLLOUT_SECONDS: seconds, STEP_SECONDS: seconds + 1.0, names.GENERATED_TOKENS: made}
        for step, (seconds, made) in enumerate(zip(rollout_s, tokens or [100.0] * len(rollout_s), strict=True), start=1)
    ]
    return Run(directory=Path("run"), records=records)


def by_label(own: Run, baseline: Run) -> dict[str, Estimate]:
    return {estimate.label: estimate for estimate in speedups(own, baseline)}


def test_ratios_are_of_sums_over_shared_steps_after_the_first():
    own = run_of([50.0, 1.0, 2.0, 3.0], [1.0, 200.0, 200.0, 200.0])
    found = by_label(own, run_of([1.0, 4.0, 4.0]))
    assert found["Rollout seconds"].value == pytest.approx((4.0 + 4.0) / (1.0 + 2.0))
    assert found["Step seconds"].value == pytest.approx((5.0 + 5.0) / (2.0 + 3.0))
    assert found["Generated tokens/s"].value == pytest.approx((400.0 / 3.0) / (200.0 / 8.0))
    assert {estimate.num_steps for estimate in found.values()} == {2}


def test_too_few_steps_tell_nothing_however_far_apart():
    few = by_label(run_of([1.0] * MIN_STEPS), run_of([9.0] * MIN_STEPS))["Rollout seconds"]
    enough = by_label(run_of([1.0] * (MIN_STEPS + 1)), run_of([9.0] * (MIN_STEPS + 1)))["Rollout seconds"]
    assert (few.num_steps, few.has_interval, few.side(1.0)) == (MIN_STEPS - 1, False, 0)
    assert (enough.has_interval, enough.side(1.0)) == (True, 1)
    assert by_label(run_of([9.0] * 9), run_of([1.0] * 9))["Rollout seconds"].side(1.0) == -1


def test_two_runs_of_one_speed_are_told_apart_about_as_often_as_an_interval_of_95_percent_may():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(100):
        own, other = (run_of(list(rng.uniform(3.0, 5.0, 30))) for _ in range(2))
        wrong += by_label(own, other)["Rollout seconds"].side(1.0) != 0
    assert wrong <= 12


def test_a_gap_in_either_run_leaves_its_step_out():
    own = run_of([1.0, 1.0, float("nan"), 1.0, 1.0])
    assert by_label(own, run_of([2.0] * 5))["Rollout seconds"].num_steps == 3
    assert speedups(run_of([1.0]), run_of([1.0])) == []


def test_a_difference_is_of_means_of_shared_steps(tmp_path):
    own = read_run(write_run(tmp_path / "own", num_steps=30))
    other = read_run(write_run(tmp_path / "other", num_steps=30, seed=5))
    found = difference(own, other, REWARD_MEAN)
    assert found is not None
    expected = float(np.mean(own.values(REWARD_MEAN)[1:]) - np.mean(other.values(REWARD_MEAN)[1:]))
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    assert difference(own, other, "no such metric") is None


def busy_run(slowdown: float, tokens: float = 100.0, *, ticks: float = 10.0) -> Run:
    """Ten steps on a machine that something else slows down; their training takes as long as they have tokens."""
    records = [
        {
            "step": step,
            names.ROLLOUT_SECONDS: slowdown,
            STEP_SECONDS: 2.0 * slowdown,
            names.GENERATED_TOKENS: tokens,
            names.ENGINE_TICKS: ticks,
            "timing_s/update_actor": slowdown * tokens / 100.0,
        }
        for step in range(1, 11)
    ]
    return Run(directory=Path("run"), records=records)


def test_a_machine_that_was_busier_for_one_run_lets_nothing_be_told_of_seconds():
    own, other = busy_run(1.0), busy_run(3.3)
    assert speedups(own, other)[0].side(1.0) == 1, "chance between the steps does not explain it"
    assert unequal_load(own, other) == pytest.approx(3.3)
    assert unequal_load(other, own) == pytest.approx(1 / 3.3)
    rollouts, steps, ticks = speed_verdicts(own, other)
    for verdict in (rollouts, steps):
        assert "cannot tell, 3.30 times as fast" in verdict
        assert "something else ran beside" in verdict
    assert ticks.startswith("Whatever else ran: 10.00 tokens in an engine's tick against 10.00, 1.00")


def test_what_is_trained_in_proportion_to_longer_responses_is_no_load():
    assert unequal_load(busy_run(1.0, tokens=50.0), busy_run(1.0)) is None
    assert unequal_load(busy_run(1.1), busy_run(1.0)) is None
    assert unequal_load(run_of([1.0] * 9), run_of([9.0] * 9)) is None, "not known"


def test_tokens_per_tick_are_the_same_however_busy_the_machine():
    found = tokens_per_tick(busy_run(9.0, ticks=5.0), busy_run(1.0))
    assert found is not None
    assert (found.value, found.own, found.baseline) == (2.0, 20.0, 10.0)
    assert tokens_per_tick(run_of([1.0] * 9), run_of([9.0] * 9)) is None
