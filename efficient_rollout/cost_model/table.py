"""Measured latencies: what one point is, and how a table of them is read."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.errors import InputFileError
from efficient_rollout.files import read_text

PLAIN, DRAFT, VERIFY = 0, 1, 2
PASS_NAMES = ("plain", "draft", "verify")
_MODES = {"target_decode": PLAIN, "drafter_decode": DRAFT, "target_verify": VERIFY}
_UNUSED_MODE = "target_decode_sd"
_COLUMNS = ("model", "batch", "seq", "gamma", "mode", "median_ms")


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """Is one thing that can be timed: a plain or draft step, or a pass that verifies k + 1 positions per sequence.

    `num_draft_tokens` is k of the tick that it belongs to, 0 for plain decoding; `context_tokens` a sequence's mean.
    """

    kind: int
    num_draft_tokens: int
    batch: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class PointArray:
    """Holds points as columns. Every array has shape (num_points,) and type float64, `kind` int64."""

    kind: NDArray[np.int64]
    num_draft_tokens: NDArray[np.float64]
    batch: NDArray[np.float64]
    context_tokens: NDArray[np.float64]

    @classmethod
    def of(cls, points: Sequence[Point]) -> "PointArray":
        """Return the columns of a list of points, in its order."""
        rows = [(p.kind, p.num_draft_tokens, p.batch, p.context_tokens) for p in points]
        kind, *others = np.array(rows, dtype=np.float64).reshape(-1, 4).T
        return cls(kind.astype(np.int64), *others)

    def take(self, index: Sequence[int] | NDArray[np.int64]) -> "PointArray":
        """Return the points at these positions."""
        i = np.asarray(index, dtype=np.int64)
        return PointArray(self.kind[i], self.num_draft_tokens[i], self.batch[i], self.context_tokens[i])


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Holds the median seconds of each measured point, and the model they were measured on."""

    model: str
    seconds: dict[Point, float]


def read_table(path: Path) -> LatencyTable:
    """Read a sweep CSV (columns `model, batch, seq, gamma, mode, median_ms`, others ignored).

    Rows with batch 0 and rows of mode `target_decode_sd` are skipped.

    Raises:
        InputFileError: the file is missing, a column is missing, or a value is malformed or repeated.
    """
    reader = csv.DictReader(read_text(path, what="the latency table").splitlines())
    missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise InputFileError(f"{path} has no column {', '.join(missing)}; it needs {', '.join(_COLUMNS)}")
    models: set[str] = set()
    seconds: dict[Point, float] = {}
    for line, row in enumerate(reader, start=2):
        models.add(row["model"])
        try:
            batch, context, k = int(row["batch"]), int(row["seq"]), int(row["gamma"])
            if row["mode"] == _UNUSED_MODE or batch == 0:
                continue
            milliseconds = float(row["median_ms"])
        except (TypeError, ValueError) as error:
            raise InputFileError(
                f"{path}:{line} batch, seq and gamma must be integers, median_ms a number, got {row}"
            ) from error
        if row["mode"] not in _MODES:
            raise InputFileError(f"{path}:{line} has unknown mode {row['mode']!r}; known: {sorted(_MODES)}")
        kind = _MODES[row["mode"]]
        if batch < 0 or context < 1 or k < 0 or (kind != PLAIN and k == 0):
            raise InputFileError(f"{path}:{line} batch, seq or gamma is out of range: {batch}, {context}, {k}")
        if not 0.0 < milliseconds < math.inf:
            raise InputFileError(f"{path}:{line} median_ms must be positive and finite, got {milliseconds}")
        point = Point(kind, k if kind != PLAIN else 0, batch, context)
        if point in seconds:
            raise InputFileError(f"{path}:{line} repeats {point}; keep one row per point")
        seconds[point] = milliseconds * 1e-3
    if len(models) > 1:
        raise InputFileError(f"{path} mixes models {sorted(models)}; give one model per file")
    if not seconds:
        raise InputFileError(f"{path} has no usable row; modes must be among {sorted(_MODES)} with batch >= 1")
    return LatencyTable(models.pop(), seconds)
