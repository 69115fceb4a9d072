"""Rules without a latency model."""

import pytest
from controller_support import state

from efficient_rollout.controller.rule import Always, BatchThreshold, Never
from efficient_rollout.controller.state import Decision


@pytest.mark.parametrize(("running", "waiting", "k"), [(8, 0, 4), (9, 0, 0), (5, 3, 4), (5, 4, 0)])
def test_batch_threshold_counts_running_and_waiting_requests(running: int, waiting: int, k: int) -> None:
    decision = BatchThreshold(4, 8).decide(state(running, waiting=waiting))
    assert decision == Decision(k, "batch_below_threshold" if k else "batch_above_threshold")


def test_never_and_always_do_not_look_at_the_batch() -> None:
    for batch in (1, 300):
        assert Never().decide(state(batch)) == Decision(0, "never")
        assert Always(4).decide(state(batch)) == Decision(4, "always")
