"""From measurements to a profile: choose points, fit, and say how good it is where it did not look."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.cost_model.fit import MIN_POINTS, fit_model, leave_one_out_log_errors, measure_and_fit
from efficient_rollout.cost_model.latency import LatencyModel, ResidualScales
from efficient_rollout.cost_model.model_shape import ModelShape
from efficient_rollout.cost_model.profile import Profile, ProfileKey
from efficient_rollout.cost_model.roofline import NO_PADDING, PARAMETERS, TENSOR_CORE_TILES, RowPadding
from efficient_rollout.cost_model.table import PASS_NAMES, PLAIN, LatencyTable, Point, PointArray
from efficient_rollout.errors import ConfigError, ProfileError

DEFAULT_MAX_POINTS = 30
Array = NDArray[np.float64]
_SCALES = ResidualScales()


def calibrate(
    candidates: Sequence[Point],
    measure: Callable[[Point], float],
    *,
    key: ProfileKey,
    max_points: int = DEFAULT_MAX_POINTS,
    shape: ModelShape | None = None,
    provenance: Mapping[str, Any] | None = None,
    padding: RowPadding = TENSOR_CORE_TILES,
    scales: ResidualScales = _SCALES,
    affords: Callable[[Point, float], bool] | None = None,
) -> Profile:
    """Measure at most `max_points` candidates and fit a profile on them, with leave-one-out errors.

    Args:
        candidates: Points that can be measured; a full grid of batch x context x (plain, draft and verify per k).
        measure: Median seconds of one point; called once for each chosen one.
        key: What the profile belongs to.
        max_points: At least `MIN_POINTS`.
        shape: Byte and operation counts from a model config; without it they are fitted.
        provenance: Of the measurement; JSON types only.
        padding: How rows may be padded; none is tried too, and kept where it predicts better.
        scales: Of the corrections, the noise of a measured point among them.
        affords: Whether there is time for a point whose ticks are predicted to take so many seconds; asked behind the
            first `MIN_POINTS`, which then are the cheapest of the fixed start. None: there always is.

    Raises:
        ConfigError: `max_points` is too small.
        ProfileError: the candidates lack a pass, or a measurement is not positive and finite.
    """
    if max_points < MIN_POINTS:
        raise ConfigError(f"max_points is {max_points}; give at least {MIN_POINTS}")
    if lacking := [name for kind, name in enumerate(PASS_NAMES) if all(p.kind != kind for p in candidates)]:
        raise ProfileError(f"no {lacking[0]} point can be measured; add rows of that mode")
    model, measured = measure_and_fit(
        candidates, lambda p: _checked(p, measure(p)), max_points, padding, scales, shape, affords
    )
    points = PointArray.of(list(measured))
    smooth = fit_model(points, np.array(list(measured.values())), NO_PADDING, scales, shape)
    # Rows are padded only where that predicts left-out points at least as well.
    model = min((model, smooth), key=lambda fitted: np.median(np.abs(leave_one_out_log_errors(fitted, points))))
    facts = {**(provenance or {}), "num_points": len(measured), "max_points": max_points}
    if shape is not None:
        facts["effective_rates"] = effective_rates(model, shape)
    error = {"leave_one_out": _summary(np.expm1(np.abs(leave_one_out_log_errors(model, points))))}
    return Profile(key, model, measured, error, facts)


def calibrate_from_table(
    table: LatencyTable,
    *,
    max_points: int = DEFAULT_MAX_POINTS,
    shape: ModelShape | None = None,
    key: ProfileKey | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Profile:
    """Do as `calibrate` does, with at most `max_points` rows of a table; every row is one point.

    The rows that were not chosen give `held_out_error`; they take no part in the fit nor in choosing.
    """
    description = shape.description if shape is not None else table.model
    profile = calibrate(
        list(table.seconds), table.seconds.__getitem__, key=key or ProfileKey(model_shape=description),
        max_points=max_points, shape=shape, provenance=provenance,
    )  # fmt: skip
    errors = dict(profile.held_out_error)
    for kind, name in enumerate(PASS_NAMES):
        unseen = [p for p in table.seconds if p.kind == kind and p not in profile.measured]
        if unseen:
            truth = np.array([table.seconds[p] for p in unseen])
            errors[name] = _summary(np.abs(profile.model.seconds(PointArray.of(unseen)) / truth - 1.0))
    return Profile(profile.key, profile.model, profile.measured, errors, profile.provenance)


def effective_rates(model: LatencyModel, shape: ModelShape) -> dict[str, float]:
    """Return the bandwidth and arithmetic rate of the fitted plain step, in bytes and operations per second."""
    plain = np.exp(model.log_parameters[PLAIN])
    return {
        "bandwidth_bytes_per_s": float(shape.weight_bytes("bfloat16") / plain[PARAMETERS.index("weight_read_s")]),
        "operations_per_s": float(2 * shape.num_weights / plain[PARAMETERS.index("row_compute_s")]),
    }


def _checked(point: Point, seconds: float) -> float:
    if not np.isfinite(seconds) or seconds <= 0.0:
        raise ProfileError(f"measuring {point} gave {seconds} seconds; it must be positive and finite: measure again")
    return seconds


def _summary(relative_errors: Array) -> dict[str, float]:
    middle, mean, most = np.median(relative_errors), relative_errors.mean(), relative_errors.max()
    return {"num_points": len(relative_errors), "median": float(middle), "mean": float(mean), "max": float(most)}
