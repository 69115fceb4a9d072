"""Fits recover what made the data; profiles survive the disk and refuse what they do not belong to."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from efficient_rollout.cost_model.calibration import calibrate, calibrate_from_table
from efficient_rollout.cost_model.fit import fit_parameters, start_points
from efficient_rollout.cost_model.latency import LatencyModel, ResidualScales, TickTable
from efficient_rollout.cost_model.model_shape import read_model_shape
from efficient_rollout.cost_model.profile import Profile, ProfileKey, load_profile, profile_to_dict, save_profile
from efficient_rollout.cost_model.roofline import (
    NO_PADDING,
    PARAMETERS,
    TENSOR_CORE_TILES,
    RowPadding,
    prior,
    roofline_seconds,
)
from efficient_rollout.cost_model.speedup import expected_tokens, expected_tokens_by_position, speedup
from efficient_rollout.cost_model.table import DRAFT, PLAIN, VERIFY, LatencyTable, Point, PointArray, read_table
from efficient_rollout.errors import ConfigError, InputFileError, ProfileError

DATA = Path(__file__).parent.parent / "data"
GRID = [
    Point(kind, k, b, s)
    for kind, lengths in ((PLAIN, (0,)), (DRAFT, (3, 7, 15)), (VERIFY, (3, 7, 15)))
    for k in lengths
    for b in (1, 4, 16, 64)
    for s in (256, 1024, 4096)
]


def synthetic(scale: float = 1.7) -> tuple[np.ndarray, np.ndarray]:
    """Log parameters off the prior, and the seconds they make on `GRID`."""
    truth = prior(0.010)[0].copy()
    truth[:, PARAMETERS.index("row_compute_s")] += np.log(scale)
    truth[VERIFY, PARAMETERS.index("attention_s_per_row_token")] += np.log(scale)
    points = PointArray.of(GRID)
    return truth, roofline_seconds(truth, points, NO_PADDING.rows(points))


@pytest.fixture(scope="module")
def profile() -> Profile:
    return calibrate_from_table(read_table(DATA / "sweep_a100_tp1_qwen257b.csv"))


def test_fit_recovers_the_parameters_that_made_the_data():
    truth, seconds = synthetic()
    points = PointArray.of(GRID)
    fitted = fit_parameters(points, seconds, NO_PADDING, ResidualScales())
    error = np.abs(np.log(roofline_seconds(fitted, points, NO_PADDING.rows(points)) / seconds))
    assert error.max() < 0.02
    column = PARAMETERS.index("row_compute_s")
    np.testing.assert_allclose(np.exp(fitted[VERIFY, column]), np.exp(truth[VERIFY, column]), rtol=0.15)


def test_one_wild_point_does_not_move_the_shape():
    _, seconds = synthetic()
    seconds[GRID.index(Point(VERIFY, 7, 16, 1024))] *= 5
    points = PointArray.of(GRID)
    fitted = fit_parameters(points, seconds, NO_PADDING, ResidualScales())
    error = np.abs(np.log(roofline_seconds(fitted, points, NO_PADDING.rows(points)) / synthetic()[1]))
    assert np.median(error) < 0.02


def test_corrections_reproduce_measured_points_and_fade_far_away(profile):
    measured = list(profile.measured)
    predicted = profile.model.seconds(PointArray.of(measured))
    np.testing.assert_allclose(predicted, list(profile.measured.values()), rtol=0.02)
    far = PointArray.of([Point(PLAIN, 0, 2**20, 256)])
    bare = LatencyModel(profile.model.log_parameters, profile.model.padding, profile.model.scales,
                        profile.model.anchors, np.zeros_like(profile.model.weights))  # fmt: skip
    np.testing.assert_allclose(profile.model.seconds(far), bare.seconds(far), rtol=0.01)


def test_padding_follows_the_measured_steps():
    verify = PointArray.of([Point(VERIFY, 11, 16, 1), Point(VERIFY, 3, 2, 1), Point(VERIFY, 7, 5, 1)])
    assert RowPadding().rows(verify).tolist() == [256.0, 16.0, 64.0]
    draft = PointArray.of([Point(DRAFT, 11, 16, 1), Point(DRAFT, 3, 16, 1), Point(DRAFT, 11, 64, 1)])
    assert RowPadding().rows(draft).tolist() == [32.0, 16.0, 80.0]


def test_held_out_error_is_stated_per_pass(profile):
    assert set(profile.held_out_error) == {"leave_one_out", "plain", "draft", "verify"}
    assert profile.held_out_error["verify"]["median"] < 0.05
    assert profile.held_out_error["plain"]["median"] < 0.03


def test_a_tick_is_k_draft_steps_and_a_verify_pass(profile):
    context = np.array([256.0, 1000.0])
    seconds = profile.model.tick_seconds(7, 8, context)
    for column, tokens in enumerate((256, 1000)):
        plain, draft, verify = profile.model.seconds(
            PointArray.of([Point(PLAIN, 0, 8, tokens), Point(DRAFT, 5, 8, tokens), Point(VERIFY, 5, 8, tokens)])
        )
        np.testing.assert_allclose(seconds[[0, 5], column], [plain, 5 * draft + verify])


def test_tick_table_agrees_with_the_model(profile):
    table = TickTable(profile.model, 7)
    direct = profile.model.tick_seconds(7, 8, np.array([700.0]))[:, 0]
    np.testing.assert_allclose(table.by_length(8, 700.0), direct, rtol=0.005)


def test_profile_survives_the_disk(profile, tmp_path):
    path = tmp_path / "deep" / "profile.json"
    save_profile(profile, path)
    again = load_profile(path)
    points = PointArray.of(GRID)
    np.testing.assert_array_equal(again.model.seconds(points), profile.model.seconds(points))
    assert again.measured == dict(profile.measured)
    assert [p.name for p in path.parent.iterdir()] == ["profile.json"]


def test_a_profile_of_another_machine_is_refused_with_the_way_out(profile):
    with pytest.raises(ProfileError, match=r"hardware: '' != 'H200'.*efficient-rollout calibrate --model m"):
        profile.require(
            ProfileKey(model_shape="Qwen2.5-7B", hardware="H200"), remedy="efficient-rollout calibrate --model m"
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(schema_version=2),
        lambda d: d.pop("key"),
        lambda d: d["model"]["passes"]["plain"].update(fixed_s=-1.0),
        lambda d: d["model"]["points"][0].update(batch=0),
        lambda d: d["model"]["points"][0].pop("median_s"),
        lambda d: d["model"]["row_padding"].update(tile=3),
        lambda d: d["model"].update(points=[]),
        lambda d: d["model"]["row_padding"].clear(),
        lambda d: d["model"]["row_padding"].update(draft_tile_rows=-16),
        lambda d: d["model"]["correction_scales"].update(draft_sd=True),
        lambda d: d["model"]["correction_scales"].pop("draft_sd"),
        lambda d: d["model"]["passes"]["draft"].update(fixed_s=float("nan")),
        lambda d: d["model"]["passes"]["draft"].update(fixed_s=True),
        lambda d: d["model"]["points"][0].update(batch="8"),
        lambda d: d["model"]["points"][0].update(batch=10**400),
        lambda d: d["model"]["points"][0].update(median_s="<b>"),
        lambda d: d["model"]["points"][0].update(correction_weight=True),
        lambda d: d["key"].update(hardware=3),
        lambda d: d.update(more=1),
    ],
)
def test_a_malformed_profile_is_refused(profile, tmp_path, change):
    data = json.loads(json.dumps(profile_to_dict(profile)))
    change(data)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ProfileError, match="calibrate --from-csv"):
        load_profile(path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a,b\n1,2\n", "no column"),
        ("model,batch,seq,gamma,mode,median_ms\nm,1,256,0,target_decode,-1\n", "positive"),
        ("model,batch,seq,gamma,mode,median_ms\nm,1,256,0,dance,1\n", "unknown mode"),
        ("model,batch,seq,gamma,mode,median_ms\nm,1,x,0,target_decode,1\n", "integers"),
        ("model,batch,seq,gamma,mode,median_ms\nm,0,256,0,target_decode,1\n", "no usable row"),
        ("model,batch,seq,gamma,mode,median_ms\n" + 2 * "m,1,256,0,target_decode,1\n", r":3 repeats"),
        ("model,batch,seq,gamma,mode,median_ms\nm,1,256,0,target_decode,1\nn,1,9,0,target_decode,1\n", "mixes models"),
    ],
)
def test_a_malformed_table_is_refused(tmp_path, text, fault):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputFileError, match=fault):
        read_table(path)


def test_too_few_points_and_missing_passes_are_refused():
    table = LatencyTable("m", {p: 0.01 for p in GRID})
    with pytest.raises(ConfigError, match="at least 12"):
        calibrate_from_table(table, max_points=5)
    with pytest.raises(ProfileError, match="no verify point"):
        calibrate([p for p in GRID if p.kind != VERIFY], lambda _: 0.01, key=ProfileKey())


class Clock:
    """Measures points of a table, and counts the time of the ticks that would take."""

    def __init__(self, table: LatencyTable, budget_s: float) -> None:
        self.table, self.budget_s, self.spent_s = table, budget_s, 0.0
        self.measured: list[Point] = []

    def tick_seconds(self, point: Point) -> float:
        k, seconds = point.num_draft_tokens, self.table.seconds
        draft, verify = (dataclasses.replace(point, kind=kind) for kind in (DRAFT, VERIFY))
        # A few rows of the table lack one of the two.
        return seconds[point] if k == 0 else k * seconds.get(draft, 0.0) + seconds.get(verify, 0.0)

    def measure(self, point: Point) -> float:
        self.measured.append(point)
        self.spent_s += self.tick_seconds(point)
        return self.table.seconds[point]

    def affords(self, _point: Point, tick_seconds: float) -> bool:
        return self.spent_s + tick_seconds <= self.budget_s

    def calibrate(self) -> Profile:
        return calibrate(list(self.table.seconds), self.measure, key=ProfileKey(), affords=self.affords)


def test_what_does_not_fit_the_time_is_left_out_and_cheap_points_are_not():
    table = read_table(DATA / "sweep_a100_tp1_qwen257b.csv")
    hurried, patient = Clock(table, 1.0), Clock(table, 1e9)
    profile, unhurried = hurried.calibrate(), patient.calibrate()
    assert len(unhurried.measured) == 30
    assert patient.spent_s > 1.5
    # A prediction may be off by a little.
    assert hurried.spent_s <= 1.1
    assert 12 < len(profile.measured) < 30
    left_out = set(patient.measured) - set(hurried.measured)
    assert max(map(hurried.tick_seconds, left_out)) > max(map(hurried.tick_seconds, hurried.measured))


def test_the_cheapest_of_the_start_are_measured_however_long_they_take():
    clock = Clock(read_table(DATA / "sweep_a100_tp1_qwen257b.csv"), 0.0)
    profile = clock.calibrate()
    points = sorted(clock.table.seconds)
    start = sorted(points[i].batch * (1 + 2 * points[i].num_draft_tokens) for i in start_points(points))
    assert sorted(p.batch * (1 + 2 * p.num_draft_tokens) for p in profile.measured) == start[:12]
    assert {p.kind for p in profile.measured} == {PLAIN, DRAFT, VERIFY}


def test_a_machine_that_pads_nothing_is_not_believed_to():
    # The Qwen table fits padded rows better, and would get them.
    table = read_table(DATA / "sweep_a100_tp1_qwen257b.csv")
    arguments = list(table.seconds), table.seconds.__getitem__
    assert calibrate(*arguments, key=ProfileKey()).model.padding == TENSOR_CORE_TILES
    assert calibrate(*arguments, key=ProfileKey(), padding=NO_PADDING).model.padding == NO_PADDING


def test_a_model_config_gives_bytes_and_operations(tmp_path):
    path = tmp_path / "config.json"
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
             "num_key_value_heads": 4, "vocab_size": 152064}  # fmt: skip
    path.write_text(json.dumps(sizes))
    shape = read_model_shape(path)
    assert shape.kv_bytes_per_token == 2 * 2 * 28 * 4 * 128
    assert shape.weight_bytes("bfloat16") == pytest.approx(14.1e9, rel=0.02)
    assert shape.draft_weight_bytes / shape.weight_bytes("bfloat16") == pytest.approx(0.33, abs=0.02)
    fitted = calibrate_from_table(read_table(DATA / "sweep_a100_tp1_qwen257b.csv"), shape=shape, max_points=20)
    assert 1.0e12 < fitted.provenance["effective_rates"]["bandwidth_bytes_per_s"] < 2.1e12


def test_a_shape_counts_every_matrix_once(tmp_path):
    path = tmp_path / "config.json"
    sizes = {"hidden_size": 8, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 5, "vocab_size": 100}  # fmt: skip
    path.write_text(json.dumps(sizes))
    # Queries and outputs of 4 heads, keys and values of 2; gate, up and down.
    body, head = 3 * (8 * 5 * (2 * 4 + 2 * 2) + 3 * 8 * 24), 8 * 100
    shape = read_model_shape(path)
    assert shape.weight_bytes("bfloat16") == 2 * (body + head)
    assert shape.draft_weight_bytes == (0.5 + 4 / 128) * body + 2 * head
    assert shape.num_weights == body + head
    assert shape.kv_bytes_per_token == 2 * 2 * 3 * 2 * 5
    assert shape.description == "l3-h8-i24-q4-kv2-d5-v100"
    for text in ("[]", json.dumps(sizes | {"vocab_size": 0}), json.dumps(sizes | {"head_dim": 2.5})):
        path.write_text(text)
        with pytest.raises(InputFileError, match=r"config\.json"):
            read_model_shape(path)


def test_expected_tokens_formulas_agree():
    assert expected_tokens(1.0, 7) == 8.0
    assert expected_tokens(0.0, 7) == 1.0
    np.testing.assert_allclose(expected_tokens_by_position([0.9] * 5), [expected_tokens(0.9, k) for k in range(6)])
    assert speedup(3.0, plain_s=0.01, speculative_s=0.02) == 1.5
    with pytest.raises(ConfigError, match="between 0 and 1"):
        expected_tokens(1.2, 3)


def test_the_pure_packages_import_with_numpy_alone():
    code = (
        "import sys, pkgutil, importlib\n"
        "for name in ('torch','vllm','verl','pydantic','scipy'): sys.modules[name] = None\n"
        "import efficient_rollout\n"
        "for room in ('cost_model','controller','simulator'):\n"
        "    package = importlib.import_module('efficient_rollout.' + room)\n"
        "    for module in pkgutil.iter_modules(package.__path__):\n"
        "        importlib.import_module(package.__name__ + '.' + module.name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
