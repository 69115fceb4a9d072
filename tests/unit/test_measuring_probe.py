"""Which points a probe may measure, and what it makes of recorded ticks; no engine."""

import pytest

pytest.importorskip("vllm")

from efficient_rollout.cost_model.table import DRAFT, PLAIN, VERIFY
from efficient_rollout.errors import ConfigError
from efficient_rollout.measuring.offline import TickRecord
from efficient_rollout.measuring.probe import ProbeSettings, candidates, seconds_of_passes, steady_ticks
from efficient_rollout.measuring.recording import parts_of_tick


def tick(
    seconds: float, draft_seconds: float, *, k: int, batch: int, verified: int | None = None, prefill: bool = False
) -> TickRecord:
    return TickRecord(
        started=0.0,
        seconds=seconds,
        draft_seconds=draft_seconds,
        num_requests=batch,
        num_verified=k * batch if verified is None else verified,
        num_drafted=k,
        had_prefill=prefill,
    )


def test_a_tick_is_split_into_draft_steps_and_a_verify_pass():
    passes = seconds_of_passes([tick(1.0, 0.4, k=4, batch=2)] * 3, 4)
    assert passes == {DRAFT: pytest.approx(0.1), VERIFY: pytest.approx(0.6)}


def test_a_plain_tick_is_one_pass_and_its_median_ignores_a_stall():
    ticks = [tick(seconds, 0.0, k=0, batch=1) for seconds in (1.0, 1.1, 30.0, 0.9, 1.2)]
    assert seconds_of_passes(ticks, 0) == {PLAIN: 1.1}


def test_only_ticks_that_are_all_alike_count():
    alike = [tick(1.0, 0.4, k=2, batch=4)] * 6
    others = [
        tick(50.0, 0.4, k=2, batch=3),  # a request was not admitted yet, or has finished
        tick(50.0, 0.4, k=2, batch=4, verified=6),  # one request's drafts were cut
        tick(50.0, 0.4, k=2, batch=4, prefill=True),
        tick(50.0, 0.0, k=0, batch=4, verified=8),  # the switch to plain still verifies
    ]
    warm_up = [tick(9.0, 0.4, k=2, batch=4)] * 2
    assert steady_ticks(others * 3 + warm_up + alike + others * 9, 2, 4) == alike


def test_candidates_fit_the_policy_and_the_cache():
    probe = ProbeSettings(batches=(1, 8), contexts=(100, 1000, 9000), lengths=(1, 4))
    points = candidates(probe, max_context_tokens=4096, kv_cache_tokens=5000)
    assert {(p.batch, p.context_tokens) for p in points} == {(1, 100), (8, 100), (1, 1000)}
    assert len(points) == len(set(points)) == 3 * (1 + 2 * 2)
    assert {(p.kind, p.num_draft_tokens) for p in points if p.batch == 8} == {
        (PLAIN, 0),
        (DRAFT, 1),
        (DRAFT, 4),
        (VERIFY, 1),
        (VERIFY, 4),
    }


def test_a_probe_with_nothing_to_measure_says_so():
    with pytest.raises(ConfigError, match="shorter --contexts"):
        candidates(ProbeSettings(contexts=(4096,)), max_context_tokens=4096, kv_cache_tokens=10**6)


def test_the_parts_of_a_tick_do_not_overlap_and_add_up_to_it():
    parts = parts_of_tick(1.0, {"worker": 0.9, "target_forward": 0.5, "draft_forward": 0.3})
    assert parts == {
        "target_forward": 0.5,
        "draft_forward": 0.3,
        "runner_bookkeeping": pytest.approx(0.1),
        "scheduling_and_messages": pytest.approx(0.1),
    }
