"""Measured corrections: what the roofline shape misses, interpolated between measured points.

Log residuals (measured over predicted) are a Gaussian process with mean 0 (Rasmussen & Williams, 2006, eq. 2.25):
correction(x) = c(x, X) (C + nugget)^-1 r. Nothing measured nearby: no correction. Three smooth parts, one per pass,
plus a short-ranged one for draft steps at a large batch x context x k, where a batch may not stay full while it is
timed and single points fall far off any smooth curve.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.cost_model.roofline import RowPadding
from efficient_rollout.cost_model.table import DRAFT, PLAIN, VERIFY, PointArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualScales:
    """Holds standard deviations (of log seconds) and length scales (in octaves) of the corrections.

    Chosen on the two A100 tables and ten perturbed mixtures of them (docs/cost_model.md), not per model.
    """

    plain_sd: float = 0.05
    plain_batch_octaves: float = 1.5
    plain_context_octaves: float = 3.0
    draft_sd: float = 0.05
    draft_rows_octaves: float = 1.2
    draft_context_octaves: float = 3.0
    verify_sd: float = 0.08
    verify_rows_octaves: float = 1.2
    verify_batch_octaves: float = 2.5
    verify_context_octaves: float = 5.0
    local_sd: float = 0.25
    local_octaves: float = 0.35
    local_onset_log2_tokens: float = 19.0
    local_onset_width_octaves: float = 0.5
    nugget_sd: float = 0.006


def local_sd(scales: ResidualScales, points: PointArray) -> Array:
    """Return the standard deviation of the short-ranged part at each point.

    It is 0 for the policy's passes, plain or verifying. Shape (num_points,).
    """
    tokens = points.batch * points.context_tokens * (points.num_draft_tokens + 1.0)
    x = (np.log2(tokens) - scales.local_onset_log2_tokens) / scales.local_onset_width_octaves
    return np.where(points.kind == DRAFT, scales.local_sd / (1.0 + np.exp(-x)), 0.0)


def covariance(scales: ResidualScales, padding: RowPadding, left: PointArray, right: PointArray) -> Array:
    """Return the prior covariance of log residuals, shape (num_left, num_right)."""
    s, k_left, k_right = scales, left.num_draft_tokens + 1.0, right.num_draft_tokens + 1.0

    def squared(a: Array, b: Array) -> Array:
        return np.asarray((np.log2(a)[:, None] - np.log2(b)[None, :]) ** 2)

    batch = squared(left.batch, right.batch)
    context = squared(left.context_tokens, right.context_tokens)
    positions = squared(left.batch * k_left, right.batch * k_right)
    rows = squared(padding.rows(left), padding.rows(right))
    plain = _matern(batch / s.plain_batch_octaves**2 + context / s.plain_context_octaves**2)
    draft = _matern(rows / s.draft_rows_octaves**2 + context / s.draft_context_octaves**2)
    verify = _matern(
        positions / s.verify_rows_octaves**2 + batch / s.verify_batch_octaves**2 + context / s.verify_context_octaves**2
    )
    local = _matern((batch + context + squared(k_left, k_right)) / s.local_octaves**2)
    total = local_sd(s, left)[:, None] * local_sd(s, right)[None, :] * local
    for kind, sd, smooth in ((PLAIN, s.plain_sd, plain), (DRAFT, s.draft_sd, draft), (VERIFY, s.verify_sd, verify)):
        total += np.where((left.kind == kind)[:, None] & (right.kind == kind)[None, :], sd**2 * smooth, 0.0)
    return np.asarray(total)


def _matern(squared_distance: Array) -> Array:
    """Return the Matern correlation of smoothness 3/2 (Rasmussen & Williams, 2006, eq. 4.17)."""
    distance = np.sqrt(3.0 * squared_distance)
    return np.asarray((1.0 + distance) * np.exp(-distance))
