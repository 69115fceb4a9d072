"""What the controller's tests share: ticks whose seconds are known, states, and counts of drafts."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.controller.rule import DecodeState
from efficient_rollout.cost_model.calibration import calibrate_from_table
from efficient_rollout.cost_model.latency import LatencyModel, ResidualScales, TickTable
from efficient_rollout.cost_model.profile import Profile
from efficient_rollout.cost_model.roofline import NO_PADDING, prior
from efficient_rollout.cost_model.table import PointArray, read_table


@cache
def a100_profile() -> Profile:
    """Fitted on the Qwen table, once per process."""
    data = Path(__file__).parent.parent / "data"
    return calibrate_from_table(read_table(data / "sweep_a100_tp1_qwen257b.csv"))


@cache
def a100_ticks() -> TickTable:
    """Tick seconds of `a100_profile` up to k = 11."""
    return TickTable(a100_profile().model, 11)


class KnownTicks(TickTable):
    """A tick of k drafts takes `seconds[k]`, whatever the batch and the context."""

    def __init__(self, *seconds: float) -> None:
        shape = LatencyModel(prior(0.010)[0], NO_PADDING, ResidualScales(), PointArray.of([]), np.zeros(0))
        super().__init__(shape, len(seconds) - 1)
        self.seconds = list(seconds)

    def by_length(self, batch: int, context_tokens: float, **_: float) -> NDArray[np.float64]:  # noqa: ARG002 - the table's own
        return np.array(self.seconds)


def state(batch: int, context: float = 1024.0, *, prefill: int = 0, waiting: int = 0, limit: int = 11) -> DecodeState:
    """One tick before it is scheduled."""
    return DecodeState(num_running_requests=batch, num_waiting_requests=waiting, num_prefill_tokens=prefill,
                       mean_context_tokens=context, max_draft_tokens=limit)  # fmt: skip


def counts(rng: np.random.Generator, acceptance: float, requests: int, k: int) -> tuple[tuple[int, ...], ...]:
    """Attempts and acceptances per position, of requests that drafted k tokens each."""
    accepted = np.minimum(rng.geometric(1.0 - acceptance, requests) - 1, k)
    reached = [int((accepted >= i).sum()) for i in range(k + 1)]
    return tuple(reached[:-1]), tuple(reached[1:])
