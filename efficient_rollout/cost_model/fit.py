"""Fit the latency model to measured points."""

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.cost_model.latency import LatencyModel
from efficient_rollout.cost_model.model_shape import ModelShape
from efficient_rollout.cost_model.residual import ResidualScales, covariance, local_sd
from efficient_rollout.cost_model.roofline import PARAMETERS, RowPadding, prior, roofline_seconds
from efficient_rollout.cost_model.table import DRAFT, PLAIN, PointArray
from efficient_rollout.errors import ProfileError

Array = NDArray[np.float64]

_SHAPE_NOISE_SD = 0.03  # how well the shape alone is expected to fit, in log seconds
_ROBUST_CUTOFF = 3.0  # residuals above this many standard deviations count logarithmically
_BYTES_PRIOR_LOG_SD = 0.15  # computed byte counts are this much better known than a guess


def fit_parameters(
    points: PointArray,
    seconds: Array,
    padding: RowPadding,
    scales: ResidualScales,
    shape: ModelShape | None = None,
) -> Array:
    """Log parameters, shape (3, 8), by robust least squares on log seconds with the prior of `roofline.prior`.

    Args:
        points: Measured points.
        seconds: Their measured seconds, shape (num_points,).
        padding: How rows are padded.
        scales: Draft points in the off-shape region are trusted less for the shape.
        shape: Byte counts computed from a model config; without it they are fitted like everything else.

    Raises:
        ProfileError: no plain decode point was measured.
    """
    from scipy.optimize import least_squares  # only calibration needs scipy

    if not (points.kind == PLAIN).any():
        raise ProfileError("no plain decode point was measured; add one of mode target_decode")
    mean, sd = shape_prior(float(seconds[points.kind == PLAIN].min()), shape)
    rows = padding.rows(points)
    noise = np.sqrt(_SHAPE_NOISE_SD**2 + local_sd(scales, points) ** 2)
    target = np.log(seconds)

    def residuals(flat: Array) -> Array:
        error = (np.log(roofline_seconds(flat.reshape(mean.shape), points, rows)) - target) / noise
        robust = np.arcsinh(error / _ROBUST_CUTOFF) * _ROBUST_CUTOFF
        return np.concatenate([robust, ((flat - mean.ravel()) / sd.ravel())])

    solution = least_squares(residuals, mean.ravel(), method="trf", max_nfev=200)
    return np.asarray(solution.x, dtype=np.float64).reshape(mean.shape)


def shape_prior(plain_step_s: float, shape: ModelShape | None) -> tuple[Array, Array]:
    """Return the prior, with byte ratios in place of guesses where a model config gives them."""
    mean, sd = prior(plain_step_s)
    if shape is None:
        return mean, sd
    weights, kv = PARAMETERS.index("weight_read_s"), PARAMETERS.index("kv_read_s_per_token")
    per_byte_s = np.exp(mean[PLAIN, weights]) / shape.weight_bytes("bfloat16")
    mean[DRAFT, weights] = np.log(per_byte_s * shape.draft_weight_bytes)
    for kind in (PLAIN, DRAFT):
        mean[kind, kv] = np.log(per_byte_s * shape.kv_bytes_per_token)
    sd[DRAFT, weights] = _BYTES_PRIOR_LOG_SD
    return mean, sd


def fit_model(
    points: PointArray,
    seconds: Array,
    padding: RowPadding,
    scales: ResidualScales,
    shape: ModelShape | None = None,
) -> LatencyModel:
    """Fit the shape, then hang the corrections on the measured points; arguments as in `fit_parameters`."""
    log_parameters = fit_parameters(points, seconds, padding, scales, shape)
    rows = padding.rows(points)
    error = np.log(seconds) - np.log(roofline_seconds(log_parameters, points, rows))
    prior_covariance = covariance(scales, points, rows, points, rows)
    weights = np.linalg.solve(prior_covariance + scales.nugget_sd**2 * np.eye(len(error)), error)
    return LatencyModel(log_parameters, padding, scales, points, weights)


def leave_one_out_log_errors(model: LatencyModel, points: PointArray) -> Array:
    """Return the error of each anchor when the corrections do not know it (Rasmussen & Williams, 2006, eq. 5.12)."""
    rows = model.padding.rows(points)
    matrix = covariance(model.scales, points, rows, points, rows) + model.scales.nugget_sd**2 * np.eye(len(rows))
    return np.asarray(model.weights / np.diag(np.linalg.inv(matrix)))
