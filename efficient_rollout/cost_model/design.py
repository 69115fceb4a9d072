"""Which points to measure: a fixed start, then always the point most likely to change a decision for the better.

Where time is short, the start goes from the cheap to the expensive, and what would not fit any more is left out: the
shape extends what is measured at few rows to many.

The second part is a knowledge gradient (Frazier et al., 2009): for each candidate, the mean saving in lost speed over
all (batch, context, acceptance) decisions, were it measured 0.8 or 1.6 standard deviations off its prediction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.cost_model.fit import fit_model
from efficient_rollout.cost_model.latency import LatencyModel
from efficient_rollout.cost_model.model_shape import ModelShape
from efficient_rollout.cost_model.residual import ResidualScales, covariance
from efficient_rollout.cost_model.roofline import RowPadding
from efficient_rollout.cost_model.speedup import expected_tokens
from efficient_rollout.cost_model.table import DRAFT, PLAIN, VERIFY, Point, PointArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]

MIN_POINTS = 12  # of the start, measured however long they take
_ACCEPTANCES = (0.7, 0.75, 0.8, 0.85, 0.9, 0.94, 0.97)
_OFFSETS_SD = np.array([-1.6, -0.8, 0.8, 1.6])
# (pass, draft length rank, batch rank, context rank); a rank is a share of the sorted distinct values.
_START = (
    (PLAIN, 0.0, 0.0, 0.0), (PLAIN, 0.0, 0.0, 1.0), (PLAIN, 0.0, 0.5, 0.5),
    (PLAIN, 0.0, 0.75, 1.0), (PLAIN, 0.0, 1.0, 0.0), (PLAIN, 0.0, 1.0, 1.0),
    (DRAFT, 0.0, 0.0, 0.0), (DRAFT, 0.0, 1.0, 0.0), (DRAFT, 0.34, 0.5, 0.75), (DRAFT, 0.0, 0.75, 0.75),
    (VERIFY, 0.0, 0.0, 0.0), (VERIFY, 0.0, 1.0, 0.0), (VERIFY, 0.34, 0.5, 0.5),
    (VERIFY, 1.0, 0.0, 1.0), (VERIFY, 1.0, 1.0, 0.0),
    # Where the key-value cache starts to crowd the batch: large batch x context, each draft length.
    (DRAFT, 1.0, 1.0, 0.5), (DRAFT, 1.0, 0.875, 0.75), (DRAFT, 0.34, 0.625, 1.0), (DRAFT, 0.34, 0.5, 1.0),
    (DRAFT, 0.0, 0.75, 1.0),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Decisions:
    """Holds the positions of the passes each (batch, context) cell needs; -1 where a pass cannot be measured."""

    lengths: Array  # (num_lengths,)
    plain: Index  # (num_cells,)
    draft: Index  # (num_cells, num_lengths)
    verify: Index  # (num_cells, num_lengths)
    tokens: Array  # (num_acceptances, num_lengths)

    def speedups(self, seconds: Array) -> Array:
        """Return shape (..., num_cells, num_acceptances, 1 + num_lengths), from seconds of shape (..., num_points)."""
        tick = self.lengths * seconds[..., self.draft] + seconds[..., self.verify]
        gain = seconds[..., self.plain][..., None, None] * self.tokens / tick[..., None, :]
        known = (self.draft >= 0) & (self.verify >= 0)
        gain = np.where(known[:, None, :], gain, 0.0)
        return np.concatenate([np.ones((*gain.shape[:-1], 1)), gain], axis=-1)


def _decisions(points: Sequence[Point]) -> _Decisions:
    position = {point: i for i, point in enumerate(points)}
    cells = sorted({(p.batch, p.context_tokens) for p in points if p.kind == PLAIN})
    lengths = sorted({p.num_draft_tokens for p in points if p.kind != PLAIN})

    def find(kind: int) -> Index:
        return np.array([[position.get(Point(kind, k, b, s), -1) for k in lengths] for b, s in cells], dtype=np.int64)

    plain = np.array([position[Point(PLAIN, 0, b, s)] for b, s in cells], dtype=np.int64)
    tokens = np.array([[expected_tokens(a, k) for k in lengths] for a in _ACCEPTANCES])
    return _Decisions(np.array(lengths, dtype=np.float64), plain, find(DRAFT), find(VERIFY), tokens)


def start_points(points: Sequence[Point]) -> list[int]:
    """Return the positions of the fixed start: corners and middles of each pass, by rank, without repeats."""
    batches = sorted({p.batch for p in points})
    contexts = sorted({p.context_tokens for p in points})
    lengths = sorted({p.num_draft_tokens for p in points if p.kind != PLAIN}) or [0]
    chosen: list[int] = []
    for kind, length_rank, batch_rank, context_rank in _START:
        k = 0 if kind == PLAIN else _ranked(lengths, length_rank)
        batch, context = _ranked(batches, batch_rank), _ranked(contexts, context_rank)
        options = [i for i, p in enumerate(points) if p.kind == kind and p.num_draft_tokens == k and i not in chosen]
        if options:
            chosen.append(min(options, key=lambda i: _octaves_apart(points[i], batch, context)))
    return chosen


def _ranked(values: Sequence[int], rank: float) -> int:
    return values[round(rank * (len(values) - 1))]


def _octaves_apart(point: Point, batch: int, context: int) -> float:
    return abs(float(np.log2(point.batch / batch))) + abs(float(np.log2(point.context_tokens / context)))


def measure_and_fit(
    candidates: Sequence[Point],
    measure: Callable[[Point], float],
    max_points: int,
    padding: RowPadding,
    scales: ResidualScales,
    shape: ModelShape | None = None,
    affords: Callable[[Point, float], bool] | None = None,
) -> tuple[LatencyModel, dict[Point, float]]:
    """Measure at most `max_points` of the candidates, one after the other, and fit.

    Args:
        candidates: Points that can be measured.
        measure: Seconds of a point; called once per chosen point.
        max_points: Upper bound of the calls.
        padding: How rows are padded.
        scales: Of the corrections.
        shape: Byte counts from a model config, when there is one.
        affords: Asked for each point behind the first `MIN_POINTS`, with the predicted seconds of a tick there; False
            leaves the point out. None: every point can be had.

    Returns:
        The fitted model, and what was measured.
    """
    points = sorted(candidates)
    everything, decisions = PointArray.of(points), _decisions(points)
    rows = padding.rows(everything)
    prior_covariance = covariance(scales, everything, rows, everything, rows)
    start = start_points(points)[:max_points]
    num_sure = len(start)
    if affords is not None:
        start.sort(key=lambda i: _cost_rank(points[i]))
        num_sure = MIN_POINTS
    seconds = {i: measure(points[i]) for i in start[:num_sure]}
    while True:
        chosen = list(seconds)
        model = fit_model(everything.take(chosen), np.array(list(seconds.values())), padding, scales, shape)
        left = [i for i in range(len(points)) if i not in seconds]
        if affords is not None:
            left = [i for i in left if affords(points[i], _tick_seconds(model, points[i]))]
        if len(chosen) >= max_points or not left:
            return model, {points[i]: seconds[i] for i in chosen}
        best = next((i for i in start if i in left), None)
        if best is None:
            posterior = _posterior(prior_covariance, chosen, scales.nugget_sd)
            gain = _knowledge_gradient(np.log(model.seconds(everything)), posterior, decisions, left)
            best = left[int(np.argmax(gain))]
        seconds[best] = measure(points[best])


def _cost_rank(point: Point) -> tuple[int, int]:
    """Order points by cost before anything was measured: rows of the tick, drafted and verified; then its context."""
    return point.batch * (1 + 2 * point.num_draft_tokens), point.context_tokens


def _tick_seconds(model: LatencyModel, point: Point) -> float:
    """Predict the seconds of the tick in which the point's pass is timed."""
    k, context = point.num_draft_tokens, np.array([float(point.context_tokens)])
    return float(model.tick_seconds(k, point.batch, context)[k, 0])


def _posterior(prior_covariance: Array, chosen: Sequence[int], nugget_sd: float) -> Array:
    known = prior_covariance[chosen]
    block = known[:, chosen] + nugget_sd**2 * np.eye(len(chosen))
    return np.asarray(prior_covariance - known.T @ np.linalg.solve(block, known))


def _knowledge_gradient(
    log_seconds: Array, posterior: Array, decisions: _Decisions, candidates: Sequence[int]
) -> Array:
    choice = decisions.speedups(np.exp(log_seconds)).argmax(axis=-1)[None, ..., None]
    gains = np.zeros(len(candidates))
    for j, i in enumerate(candidates):
        shift = posterior[:, i] / np.sqrt(max(posterior[i, i], 1e-12))
        gain = decisions.speedups(np.exp(log_seconds + _OFFSETS_SD[:, None] * shift))
        kept = np.take_along_axis(gain, np.broadcast_to(choice, (*gain.shape[:-1], 1)), axis=-1)[..., 0]
        gains[j] = float(np.mean(1.0 - kept / gain.max(axis=-1)))
    return gains
