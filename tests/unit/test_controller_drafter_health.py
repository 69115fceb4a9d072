"""A drafter that does not follow the policy is noticed, one that follows it badly is not; the worker is believed."""

import logging
import random

import pytest

from efficient_rollout.controller.drafter_health import DrafterHealth, DrafterReport


def feed(health: DrafterHealth, acceptance: float, num_drafts: int, seed: int = 0) -> None:
    draw = random.Random(seed)
    for _ in range(num_drafts):
        health.observe_first_drafts(1, draw.random() < acceptance)


def test_a_new_drafter_may_draft() -> None:
    assert DrafterHealth().why_not() is None


def test_unrelated_weights_are_noticed_after_256_first_drafts_and_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    health = DrafterHealth()
    with caplog.at_level(logging.ERROR):
        feed(health, 0.0, 255)
        assert health.why_not() is None
        feed(health, 0.0, 1)
        assert health.why_not() == "drafter_stale"
        feed(health, 0.0, 2000)
    (record,) = caplog.records
    assert "drafter does not follow the policy: 0% of the last 256" in record.getMessage()


@pytest.mark.parametrize("seed", range(20))
def test_acceptance_of_a_tenth_is_noticed_in_the_first_window(seed: int) -> None:
    health = DrafterHealth()
    feed(health, 0.1, 256, seed)
    assert health.is_stale


def test_windows_follow_one_another() -> None:
    health = DrafterHealth()
    health.observe_first_drafts(300, 290)
    health.observe_first_drafts(256, 0)
    assert health.is_stale, "a good window must not hide a bad one"


@pytest.mark.parametrize("acceptance", [0.45, 0.7, 0.99])
def test_a_poor_drafter_is_not_a_stale_one(acceptance: float) -> None:
    for seed in range(20):
        health = DrafterHealth()
        feed(health, acceptance, 5000, seed)
        assert not health.is_stale


def test_new_weights_clear_it_and_the_count_before_them() -> None:
    health = DrafterHealth()
    feed(health, 0.0, 512)
    assert not health.take_report(DrafterReport(weights_version=0)), "no news"
    assert health.is_stale
    assert health.take_report(DrafterReport(weights_version=1))
    assert health.why_not() is None
    feed(health, 0.0, 255)
    assert health.take_report(DrafterReport(weights_version=2))
    feed(health, 0.0, 255)
    assert health.why_not() is None


def test_a_fault_lasts_for_as_long_as_the_worker_reports_it() -> None:
    health = DrafterHealth()
    health.take_report(DrafterReport(drafter_fault="no memory"))
    assert health.why_not() == "drafter_fault"
    feed(health, 0.0, 256)
    assert health.why_not() == "drafter_fault", "the nearer reason"
    health.take_report(DrafterReport())
    assert health.why_not() == "drafter_stale"


def test_an_engine_of_several_ranks_is_as_well_as_the_worst_of_them() -> None:
    well = DrafterReport(weights_version=3)
    assert DrafterReport.of_all([well, well]) == well
    behind = DrafterReport(weights_version=2, weights_fault="torn", drafter_fault="no memory")
    assert DrafterReport.of_all([well, behind]) == DrafterReport(2, "on rank 1: torn", "on rank 1: no memory")
    assert DrafterReport.of_all([behind, well]) == behind
    told = DrafterReport.of_all([well, behind])
    assert DrafterReport.of_all([told, told]) == told, "what every rank was told is said no differently again"
