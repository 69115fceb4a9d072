"""Measure points and fit the latency model to them: a fixed start, then the point most likely to change a decision.

Where time is short, the start goes from the cheap to the expensive, and what would not fit any more is left out: the
shape extends what is measured at few rows to many.

What follows the start is a knowledge gradient (Frazier et al., 2009): for each candidate, the mean saving in lost speed
over all (batch, context, acceptance) decisions, were it measured 0.8 or 1.6 standard deviations off its prediction.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.cost_model.latency import LatencyModel, ResidualScales, covariance, local_sd
from efficient_rollout.cost_model.model_shape import ModelShape
from efficient_rollout.cost_model.roofline import RowPadding, prior, roofline_seconds
from efficient_rollout.cost_model.speedup import expected_tokens
from efficient_rollout.cost_model.table import DRAFT, PLAIN, VERIFY, Point, PointArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]

MIN_POINTS = 12  # of the start, measured however long they take
_SHAPE_NOISE_SD = 0.03  # how well the shape alone is expected to fit, in log seconds
_ROBUST_CUTOFF = 3.0  # residuals above this many standard deviations count logarithmically
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


def measure_and_fit(
    candidates: Sequence[Point],
    measure: Callable[[Point], float],
    max_points: int,
    padding: RowPadding,
    scales: ResidualScales,
    shape: ModelShape | None = None,
    affords: Callable[[Point, float], bool] | None = None,
) -> tuple[LatencyModel, dict[Point, float]]:
    """Measure at most `max_points` of the candidates, one after the other, and fit; arguments as in `calibrate`.

    Returns:
        The fitted model, and what was measured.
    """
    points = sorted(candidates)
    everything, decisions = PointArray.of(points), _Decisions(points)
    prior_covariance = covariance(scales, padding, everything, everything)
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
            known = prior_covariance[chosen]
            block = known[:, chosen] + scales.nugget_sd**2 * np.eye(len(chosen))
            posterior = prior_covariance - known.T @ np.linalg.solve(block, known)
            best = left[int(np.argmax(decisions.gains(np.log(model.seconds(everything)), posterior, left)))]
        seconds[best] = measure(points[best])


def _cost_rank(point: Point) -> tuple[int, int]:
    """Order points by cost before anything was measured: rows of the tick, drafted and verified; then its context."""
    return point.batch * (1 + 2 * point.num_draft_tokens), point.context_tokens


def _tick_seconds(model: LatencyModel, point: Point) -> float:
    """Predict the seconds of the tick in which the point's pass is timed."""
    k, context = point.num_draft_tokens, np.array([float(point.context_tokens)])
    return float(model.tick_seconds(k, point.batch, context)[k, 0])


def start_points(points: Sequence[Point]) -> list[int]:
    """Return the positions of the fixed start: corners and middles of each pass, by rank, without repeats."""
    batches = sorted({p.batch for p in points})
    contexts = sorted({p.context_tokens for p in points})
    lengths = sorted({p.num_draft_tokens for p in points if p.kind != PLAIN}) or [0]

    def ranked(values: Sequence[int], rank: float) -> int:
        return values[round(rank * (len(values) - 1))]

    def octaves_apart(point: Point, batch: int, context: int) -> float:
        return abs(math.log2(point.batch / batch)) + abs(math.log2(point.context_tokens / context))

    chosen: list[int] = []
    for kind, length_rank, batch_rank, context_rank in _START:
        k = 0 if kind == PLAIN else ranked(lengths, length_rank)
        batch, context = ranked(batches, batch_rank), ranked(contexts, context_rank)
        options = [i for i, p in enumerate(points) if p.kind == kind and p.num_draft_tokens == k and i not in chosen]
        if options:
            chosen.append(min(options, key=lambda i: octaves_apart(points[i], batch, context)))
    return chosen


class _Decisions:
    """Holds the positions of the passes that each (batch, context) cell needs; -1 where a pass cannot be measured.

    Shapes: lengths (num_lengths,), plain (num_cells,), draft and verify (num_cells, num_lengths), tokens
    (num_acceptances, num_lengths).
    """

    def __init__(self, points: Sequence[Point]) -> None:
        position = {point: i for i, point in enumerate(points)}
        cells = sorted({(p.batch, p.context_tokens) for p in points if p.kind == PLAIN})
        lengths = sorted({p.num_draft_tokens for p in points if p.kind != PLAIN})

        def find(kind: int, lengths: Sequence[int]) -> Index:
            return np.array([[position.get(Point(kind, k, b, s), -1) for k in lengths] for b, s in cells])

        self.lengths = np.array(lengths, dtype=np.float64)
        self.plain, self.draft, self.verify = find(PLAIN, [0])[:, 0], find(DRAFT, lengths), find(VERIFY, lengths)
        self.tokens = np.array([[expected_tokens(a, k) for k in lengths] for a in _ACCEPTANCES])

    def speedups(self, seconds: Array) -> Array:
        """Return shape (..., num_cells, num_acceptances, 1 + num_lengths), from seconds of shape (..., num_points)."""
        tick = self.lengths * seconds[..., self.draft] + seconds[..., self.verify]
        gain = seconds[..., self.plain][..., None, None] * self.tokens / tick[..., None, :]
        known = (self.draft >= 0) & (self.verify >= 0)
        gain = np.where(known[:, None, :], gain, 0.0)
        return np.concatenate([np.ones((*gain.shape[:-1], 1)), gain], axis=-1)

    def gains(self, log_seconds: Array, posterior: Array, candidates: Sequence[int]) -> Array:
        """Return the knowledge gradient of each candidate, shape (num_candidates,)."""
        choice = self.speedups(np.exp(log_seconds)).argmax(axis=-1)[None, ..., None]
        gains = np.zeros(len(candidates))
        for j, i in enumerate(candidates):
            shift = posterior[:, i] / np.sqrt(max(posterior[i, i], 1e-12))
            gain = self.speedups(np.exp(log_seconds + _OFFSETS_SD[:, None] * shift))
            kept = np.take_along_axis(gain, np.broadcast_to(choice, (*gain.shape[:-1], 1)), axis=-1)[..., 0]
            gains[j] = float(np.mean(1.0 - kept / gain.max(axis=-1)))
        return gains


def fit_model(
    points: PointArray, seconds: Array, padding: RowPadding, scales: ResidualScales, shape: ModelShape | None = None
) -> LatencyModel:
    """Fit the shape, then hang the corrections on the measured points; arguments as in `fit_parameters`."""
    log_parameters = fit_parameters(points, seconds, padding, scales, shape)
    error = np.log(seconds) - np.log(roofline_seconds(log_parameters, points, padding.rows(points)))
    weights = np.linalg.solve(_with_nugget(scales, padding, points), error)
    return LatencyModel(log_parameters, padding, scales, points, weights)


def leave_one_out_log_errors(model: LatencyModel, points: PointArray) -> Array:
    """Return the error of each anchor when the corrections do not know it (Rasmussen & Williams, 2006, eq. 5.12)."""
    inverse = np.linalg.inv(_with_nugget(model.scales, model.padding, points))
    return np.asarray(model.weights / np.diag(inverse))


def _with_nugget(scales: ResidualScales, padding: RowPadding, points: PointArray) -> Array:
    prior_covariance = covariance(scales, padding, points, points)
    return np.asarray(prior_covariance + scales.nugget_sd**2 * np.eye(len(prior_covariance)))


def fit_parameters(
    points: PointArray, seconds: Array, padding: RowPadding, scales: ResidualScales, shape: ModelShape | None = None
) -> Array:
    """Return log parameters, shape (3, 8), by robust least squares on log seconds with the prior of `roofline.prior`.

    Args:
        points: Measured points, plain ones among them.
        seconds: Their measured seconds, shape (num_points,).
        padding: How rows are padded.
        scales: Draft points in the off-shape region are trusted less for the shape.
        shape: Byte counts computed from a model config; without it they are fitted like everything else.
    """
    from scipy.optimize import least_squares  # only calibration needs scipy

    mean, sd = prior(float(seconds[points.kind == PLAIN].min()), shape)
    rows, target = padding.rows(points), np.log(seconds)
    noise = np.sqrt(_SHAPE_NOISE_SD**2 + local_sd(scales, points) ** 2)

    def residuals(flat: Array) -> Array:
        error = (np.log(roofline_seconds(flat.reshape(mean.shape), points, rows)) - target) / noise
        robust = np.arcsinh(error / _ROBUST_CUTOFF) * _ROBUST_CUTOFF
        return np.concatenate([robust, (flat - mean.ravel()) / sd.ravel()])

    solution = least_squares(residuals, mean.ravel(), method="trf", max_nfev=200)
    return np.asarray(solution.x, dtype=np.float64).reshape(mean.shape)
