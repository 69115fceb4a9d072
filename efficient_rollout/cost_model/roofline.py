"""Seconds of one pass from bytes, operations and fixed overheads: the shape the measured corrections start from.

seconds = fixed + (weights^p + (compute * rows)^p)^(1/p) + per_sequence * batch
          + ((latency * S)^4 + (kv * B S)^4 + (attention * B (k+1) S)^4)^(1/4)
with p = 1 + exp(log(p - 1)): p = 1 adds reading and arithmetic, a large p hides the shorter one behind the longer
(Williams et al., 2009). `rows` is what the matrix products compute, padding included.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.cost_model.model_shape import ModelShape
from efficient_rollout.cost_model.table import DRAFT, PLAIN, VERIFY, PointArray

Array = NDArray[np.float64]

# Every parameter is positive and is fitted as its logarithm.
PARAMETERS = (
    "fixed_s",  # launch, sampling and other time that depends on nothing
    "weight_read_s",  # weight bytes over bandwidth
    "row_compute_s",  # operations per row over the rate
    "sequence_overhead_s",  # bookkeeping and sampling per running sequence
    "context_latency_s_per_token",  # attention of one sequence is a serial loop over its context
    "kv_read_s_per_token",  # key and value bytes of one context token over bandwidth
    "attention_s_per_row_token",  # attention operations of one row and one context token over the rate; verify only
    "overlap_exponent_minus_1",
)
_ATTENTION_EXPONENT = 4
# Prior: each parameter over the plain step of one sequence, except the last column.
_PRIOR_RATIO = np.array(
    [
        [0.10, 0.90, 6e-3, 1e-3, 1e-5, 3e-6, 1e-9, 0.3],
        [0.10, 0.40, 1e-2, 2e-3, 1e-5, 5e-6, 1e-9, 0.5],
        [0.10, 0.85, 6e-3, 4e-3, 7e-5, 3e-7, 4e-7, 0.3],
    ]
)
_PRIOR_LOG_SD = np.array([[0.3, 0.2, 1.0, 1.0, 1.0, 1.0, 1.0, 0.3]] * 3)
_BYTES_PRIOR_LOG_SD = 0.15  # computed byte counts are this much better known than a guess


@dataclass(frozen=True, slots=True)
class RowPadding:
    """Counts the rows the kernels really compute for a given batch.

    The policy's are padded to a power of two, at least `min_target_rows`, and above a tile to a multiple of it; draft
    rows to a multiple of their tile, half a tile is one too. Tiles of 1 row pad nothing. With `graph_padding` a draft
    step runs in a captured graph whose size is a multiple of k + 1, as in vLLM's V1 runner.
    """

    target_tile_rows: int = 128
    draft_tile_rows: int = 16
    graph_padding: bool = True
    min_target_rows: int = 16

    def rows(self, points: PointArray) -> Array:
        """Return padded rows per point, shape (num_points,)."""
        drafting, batch = points.kind == DRAFT, points.batch
        if self.graph_padding:
            batch = np.where(drafting, _graph_rows(batch, points.num_draft_tokens), batch)
        rows = batch * np.where(points.kind == VERIFY, points.num_draft_tokens + 1.0, 1.0)
        return np.where(drafting, self._draft(rows), self._target(rows, points.kind))

    def _draft(self, rows: Array) -> Array:
        if self.draft_tile_rows <= 1:
            return rows
        half = self.draft_tile_rows / 2
        return np.where(rows <= half, half, np.ceil(rows / self.draft_tile_rows) * self.draft_tile_rows)

    def _target(self, rows: Array, kind: NDArray[np.int64]) -> Array:
        if self.target_tile_rows <= 1:
            return rows
        smallest = np.where(kind == PLAIN, self.min_target_rows / 2, self.min_target_rows)
        power = np.maximum(2.0 ** np.ceil(np.log2(rows) - 1e-9), smallest)
        tiled = np.ceil(rows / self.target_tile_rows) * self.target_tile_rows
        return np.where(rows <= self.target_tile_rows, power, tiled)


TENSOR_CORE_TILES, NO_PADDING = RowPadding(), RowPadding(1, 1, False, 1)
# A draft step's graph has one of its own for each number of requests.
GRAPHS_OF_EVERY_LENGTH = RowPadding(graph_padding=False)


def _graph_rows(batch: Array, num_draft_tokens: Array) -> Array:
    """Return the smallest captured size that holds `batch`: 1, 2, 4 or 8 n, rounded up to a multiple of k + 1."""
    multiple = num_draft_tokens + 1.0
    sizes = np.concatenate([[1.0, 2.0, 4.0], np.arange(8.0, 1032.0, 8.0)])
    captured = np.ceil(sizes / multiple[:, None]) * multiple[:, None]
    fits = np.where(captured >= batch[:, None], captured, np.inf).min(axis=1)
    return np.where(np.isfinite(fits), fits, batch)


def roofline_seconds(log_parameters: Array, points: PointArray, rows: Array) -> Array:
    """Return seconds per point, shape (num_points,), from the logarithms of `PARAMETERS`, (3, 8), and padded rows."""
    fixed, weights, compute, sequence, latency, kv, attention, overlap = np.exp(log_parameters)[points.kind].T
    p, q = 1.0 + overlap, _ATTENTION_EXPONENT
    matmul = (weights**p + (compute * rows) ** p) ** (1.0 / p)
    kv_tokens = points.batch * points.context_tokens
    per_row = np.where(points.kind == VERIFY, attention * (points.num_draft_tokens + 1.0), 0.0)
    context = ((latency * points.context_tokens) ** q + (kv * kv_tokens) ** q + (per_row * kv_tokens) ** q) ** (1 / q)
    return np.asarray(fixed + matmul + sequence * points.batch + context, dtype=np.float64)


def prior(plain_step_s: float, shape: ModelShape | None = None) -> tuple[Array, Array]:
    """Return mean and standard deviation of the log parameters, each (3, 8), before any fit; see docs/cost_model.md.

    Byte ratios take the place of guesses where a model config gives them.
    """
    centre, sd = _PRIOR_RATIO.copy(), _PRIOR_LOG_SD.copy()
    centre[:, :-1] *= plain_step_s
    if shape is not None:
        weights, kv = PARAMETERS.index("weight_read_s"), PARAMETERS.index("kv_read_s_per_token")
        per_byte_s = centre[PLAIN, weights] / shape.weight_bytes("bfloat16")
        centre[DRAFT, weights] = per_byte_s * shape.draft_weight_bytes
        centre[[PLAIN, DRAFT], kv] = per_byte_s * shape.kv_bytes_per_token
        sd[DRAFT, weights] = _BYTES_PRIOR_LOG_SD
    return np.log(centre), sd
