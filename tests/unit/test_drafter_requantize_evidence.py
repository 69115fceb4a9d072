"""Requantizing on evidence: kept while drafts are accepted as after the last time, and asked for when they are not."""

import pytest

from efficient_rollout.drafter.requantize_evidence import RequantizeEvidence


def rollout(evidence: RequantizeEvidence, acceptance: float, num_drafts: int = 1000) -> bool:
    evidence.observe(num_drafts, round(acceptance * num_drafts))
    return evidence.asks()


def test_before_any_draft_and_with_too_few_it_asks():
    evidence = RequantizeEvidence(0.02)
    assert evidence.asks()
    assert rollout(evidence, 0.9, num_drafts=255)


@pytest.mark.parametrize(("later", "asks"), [(0.95, False), (0.89, False), (0.87, True)])
def test_a_fall_beyond_the_bound_is_evidence(later, asks):
    evidence = RequantizeEvidence(0.02)
    assert not rollout(evidence, 0.9), "the first rollout after requantizing is what later ones are compared with"
    assert rollout(evidence, later) is asks


def test_after_requantizing_the_comparison_starts_anew():
    evidence = RequantizeEvidence(0.02)
    assert [rollout(evidence, a) for a in (0.9, 0.7, 0.7, 0.69, 0.6)] == [False, True, False, False, True]


def test_rollouts_do_not_add_up():
    evidence = RequantizeEvidence(0.02)
    rollout(evidence, 0.9)
    assert not rollout(evidence, 0.9)
    assert rollout(evidence, 0.8), "a fall must not be hidden by what was counted before the last sync"
