"""The claim: one k for all running requests loses next to nothing to a k for each of them, on measured latencies.

A draft step costs the reading of the weights, whoever takes part, so that requests that accept less draft along nearly
for free while others draft; and where rows do cost, few drafts pay for anybody.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest

from efficient_rollout.cost_model.calibration import calibrate_from_table
from efficient_rollout.cost_model.latency import LatencyModel
from efficient_rollout.cost_model.speedup import expected_tokens
from efficient_rollout.cost_model.table import read_table

DATA = Path(__file__).parent.parent / "data"
BATCHES, CONTEXTS, MAX_DRAFTS = (2, 8, 16, 24, 32, 48, 64, 128), (512, 2048, 8192), 15
# Acceptance of one half of the requests, and of the other.
HALVES = ((0.98, 0.9), (0.98, 0.8), (0.98, 0.6), (0.95, 0.75), (0.9, 0.5))


class Ticks:
    """Tokens per second of a batch whose halves draft differently, known exactly."""

    def __init__(self, model: LatencyModel, batch: int, context_tokens: int) -> None:
        context = np.array([float(context_tokens)])
        plain, draft, verify = model.pass_seconds(MAX_DRAFTS, batch, context)
        self.half = batch // 2
        self.draft_s = draft[:, 0]
        # In favour of lengths of their own: those who go on alone pay for their rows only, and the least of any k.
        self.half_draft_s = float(min(model.pass_seconds(MAX_DRAFTS, self.half, context)[1].min(), self.draft_s.min()))
        self.verify_s = np.concatenate([plain, verify[:, 0]])

    def rate(self, lengths: tuple[int, int], acceptances: tuple[float, float]) -> float:
        """Both halves of a tick; its verify pass costs what one with as many rows does."""
        fewer, more = sorted(lengths)
        chain_s = fewer * self.draft_s[max(fewer, 1) - 1] + (more - fewer) * self.half_draft_s
        verify_s = np.interp(sum(lengths) / 2, np.arange(MAX_DRAFTS + 1), self.verify_s)
        tokens = sum(self.half * expected_tokens(a, k) for a, k in zip(acceptances, lengths, strict=True))
        return float(tokens / (chain_s + verify_s))


def gain(ticks: Ticks, halves: tuple[float, float]) -> float:
    """Share that the best two lengths yield above the best common one."""
    lengths = range(MAX_DRAFTS + 1)
    own = max(ticks.rate(pair, halves) for pair in itertools.product(lengths, repeat=2))
    return own / max(ticks.rate((k, k), halves) for k in lengths) - 1.0


@pytest.mark.parametrize("name", ["sweep_a100_tp1_qwen257b.csv", "sweep_a100_tp1_llama318binstruct.csv"])
def test_lengths_per_request_gain_next_to_nothing_over_the_best_common_one(name):
    model = calibrate_from_table(read_table(DATA / name)).model
    cells = [Ticks(model, batch, context) for batch, context in itertools.product(BATCHES, CONTEXTS)]
    assert max(gain(ticks, halves) for ticks, halves in itertools.product(cells, HALVES)) < 0.001


def test_they_would_gain_if_requests_paid_for_their_rows_alone():
    ticks = Ticks(calibrate_from_table(read_table(DATA / "sweep_a100_tp1_qwen257b.csv")).model, 32, 2048)
    ticks.draft_s, ticks.half_draft_s = np.full(MAX_DRAFTS, 1e-3), 0.5e-3
    ticks.verify_s = 1e-3 * np.arange(1.0, MAX_DRAFTS + 2.0) + 5e-3
    assert gain(ticks, (0.98, 0.6)) > 0.1
