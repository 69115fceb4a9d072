"""Seconds of a plain step, a draft step, a verify pass and a whole tick: the roofline shape times its corrections."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.cost_model.residual import ResidualScales, covariance
from efficient_rollout.cost_model.roofline import RowPadding, roofline_seconds
from efficient_rollout.cost_model.table import DRAFT, PLAIN, VERIFY, PointArray

Array = NDArray[np.float64]
# Of a table's contexts, from 1 token on; those beyond its ends read as the ends.
_OCTAVES, _STEPS_PER_OCTAVE = 17, 4


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
