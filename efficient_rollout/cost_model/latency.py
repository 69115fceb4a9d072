"""Seconds of a plain step, a draft step, a verify pass and a whole tick: the roofline shape times its corrections.

The corrections are what the shape misses, interpolated between measured points: log residuals (measured over predicted)
are a Gaussian process with mean 0 (Rasmussen & Williams, 2006, eq. 2.25), correction(x) = c(x, X) (C + nugget)^-1 r.
Nothing measured nearby: no correction. Three smooth parts, one per pass, plus a short-ranged one for draft steps at a
large batch x context x k, where a batch may not stay full while it is timed and single points fall far off any smooth
curve.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.cost_model.roofline import RowPadding, roofline_seconds
from efficient_rollout.cost_model.table import DRAFT, PLAIN, VERIFY, PointArray

Array = NDArray[np.float64]
# Of a table's contexts, from 1 token on; those beyond its ends read as the ends.
_OCTAVES, _STEPS_PER_OCTAVE = 17, 4


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


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Holds a fitted model, whose corrections hang on the measured points `anchors`."""

    log_parameters: Array  # (3, 8), see `roofline.PARAMETERS`
    padding: RowPadding
    scales: ResidualScales
    anchors: PointArray
    weights: Array  # (num_anchors,): (C + nugget)^-1 times the log residuals

    def seconds(self, points: PointArray) -> Array:
        """Return predicted seconds, shape (num_points,)."""
        base = roofline_seconds(self.log_parameters, points, self.padding.rows(points))
        return np.asarray(base * np.exp(covariance(self.scales, self.padding, points, self.anchors) @ self.weights))

    def tick_seconds(self, max_draft_tokens: int, batch: float, context_tokens: Array) -> Array:
        """Return the seconds of a whole tick for k = 0..max at each context, shape (max + 1, num_contexts).

        k = 0 is one plain step; k > 0 is k draft steps and one verify pass.
        """
        return np.asarray(self.parts_of_ticks(max_draft_tokens, batch, context_tokens).sum(axis=0))

    def parts_of_ticks(self, max_draft_tokens: int, batch: float, context_tokens: Array) -> Array:
        """Return the draft steps' seconds and the other pass's, shape (2, max + 1, num_contexts)."""
        plain, draft, verify = self.pass_seconds(max_draft_tokens, batch, context_tokens)
        k = np.arange(1.0, max_draft_tokens + 1.0)[:, None]
        return np.stack([np.vstack([np.zeros_like(plain), k * draft]), np.vstack([plain, verify])])

    def pass_seconds(self, max_draft_tokens: int, batch: float, context_tokens: Array) -> tuple[Array, Array, Array]:
        """Return plain (num_contexts,), draft and verify (max, num_contexts) seconds for k = 1..max."""
        lengths = np.arange(1.0, max_draft_tokens + 1.0)
        rows = 1 + 2 * len(lengths)  # of (pass, k): plain, then draft and verify of each k
        kind = np.repeat([PLAIN, DRAFT, VERIFY], [1, len(lengths), len(lengths)])
        k = np.concatenate([[0.0], lengths, lengths])
        num, context = len(context_tokens), np.tile(np.maximum(context_tokens, 1.0), rows)
        points = PointArray(np.repeat(kind, num), np.repeat(k, num), np.full(rows * num, max(batch, 1.0)), context)
        seconds = self.seconds(points).reshape(rows, num)
        return seconds[0], seconds[1 : 1 + len(lengths)], seconds[1 + len(lengths) :]


@dataclass(slots=True)
class TickTable:
    """Holds tick seconds up to the largest k, computed once per batch, interpolated linearly in log2 context."""

    model: LatencyModel
    max_draft_tokens: int
    _by_batch: dict[int, Array] = field(default_factory=dict)

    def by_length(self, batch: int, context_tokens: float, *, checked: float = 0.0, kept: float = 0.0) -> Array:
        """Return the seconds of a tick for k = 0..max, shape (max + 1,).

        Args:
            batch: Running requests.
            context_tokens: Mean per request.
            checked: Copied tokens that a draft pass checks for a request: it takes as long as one of so many more.
            kept: Those of them that stand: a chain takes so many passes fewer.
        """
        position = min(math.log2(max(context_tokens, 1.0)), _OCTAVES) * _STEPS_PER_OCTAVE
        low, share = int(position), position % 1.0
        draft, other = self._at(batch, low, share)
        if checked > 0.0:
            draft = self._at(round(batch * (1.0 + checked)), low, share)[0] / (1.0 + kept)
        return np.asarray(draft + other)

    def _at(self, batch: int, low: int, share: float) -> Array:
        parts = self._parts(batch)
        return np.asarray(parts[:, :, low] * (1.0 - share) + parts[:, :, low + 1] * share)

    def _parts(self, batch: int) -> Array:
        """Return the draft steps' seconds and the other pass's at every grid context."""
        if batch not in self._by_batch:
            grid = 2.0 ** (np.arange(_OCTAVES * _STEPS_PER_OCTAVE + 2) / _STEPS_PER_OCTAVE)
            self._by_batch[batch] = self.model.parts_of_ticks(self.max_draft_tokens, batch, grid)
        return self._by_batch[batch]
