"""From measurements to a profile: what is refused, and what the profile says of itself."""

import math

import numpy as np
import pytest
from controller_support import a100_profile

from efficient_rollout.cost_model.calibration import calibrate, effective_rates
from efficient_rollout.cost_model.fit import leave_one_out_log_errors
from efficient_rollout.cost_model.latency import LatencyModel, covariance
from efficient_rollout.cost_model.model_shape import ModelShape
from efficient_rollout.cost_model.profile import ProfileKey
from efficient_rollout.cost_model.roofline import PARAMETERS, prior, roofline_seconds
from efficient_rollout.cost_model.table import DRAFT, PLAIN, VERIFY, Point, PointArray
from efficient_rollout.errors import ProfileError

SHAPE = ModelShape(
    num_weights=4_000_000_000,
    draft_weight_bytes=2e9,
    kv_bytes_per_token=4e5,
    description="s",
)
WEIGHTS, COMPUTE, KV = (PARAMETERS.index(p) for p in ("weight_read_s", "row_compute_s", "kv_read_s_per_token"))


def test_byte_counts_take_the_place_of_guesses_in_the_prior():
    guess, doubt = prior(0.010)
    mean, sd = prior(0.010, SHAPE)
    per_byte_s = np.exp(guess[PLAIN, WEIGHTS]) / 8e9
    assert np.exp(mean[DRAFT, WEIGHTS]) == pytest.approx(2e9 * per_byte_s)
    assert np.exp(mean[[PLAIN, DRAFT], KV]) == pytest.approx([4e5 * per_byte_s] * 2)
    assert mean[VERIFY, KV] == guess[VERIFY, KV], "a verify pass reads it for several positions at once"
    assert sd[DRAFT, WEIGHTS] < doubt[DRAFT, WEIGHTS]


def test_the_rates_are_those_the_fitted_plain_step_implies():
    model = a100_profile().model
    log_parameters = model.log_parameters.copy()
    log_parameters[PLAIN, [WEIGHTS, COMPUTE]] = np.log([0.004, 1e-4])
    changed = LatencyModel(log_parameters, model.padding, model.scales, model.anchors, model.weights)
    assert effective_rates(changed, SHAPE) == pytest.approx({"bandwidth_bytes_per_s": 2e12, "operations_per_s": 8e13})


def test_the_error_of_a_point_is_the_one_without_it():
    profile = a100_profile()
    model, points = profile.model, list(profile.measured)
    seconds = np.array(list(profile.measured.values()))
    everything = PointArray.of(points)
    rows = model.padding.rows(everything)
    residual = np.log(seconds) - np.log(roofline_seconds(model.log_parameters, everything, rows))
    matrix = covariance(model.scales, model.padding, everything, everything)
    matrix += model.scales.nugget_sd**2 * np.eye(len(rows))
    errors = leave_one_out_log_errors(model, everything)
    for i in (0, 7, 29):
        others = [j for j in range(len(points)) if j != i]
        weights = np.linalg.solve(matrix[np.ix_(others, others)], residual[others])
        without = LatencyModel(model.log_parameters, model.padding, model.scales, everything.take(others), weights)
        assert errors[i] == pytest.approx(math.log(seconds[i] / without.seconds(everything.take([i]))[0]))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_measurement_that_is_no_time_is_refused(seconds):
    points = [Point(kind, k, 1, 256) for kind, k in ((PLAIN, 0), (DRAFT, 3), (VERIFY, 3))]
    with pytest.raises(ProfileError, match="must be positive and finite"):
        calibrate(points, lambda _: seconds, key=ProfileKey())
