"""The latency profile: a fitted model with its key, its error and its provenance, as one JSON file."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from efficient_rollout.cost_model.latency import LatencyModel
from efficient_rollout.cost_model.residual import ResidualScales
from efficient_rollout.cost_model.roofline import RowPadding, parameters_from_dict, parameters_to_dict
from efficient_rollout.cost_model.table import PASS_NAMES, Point, PointArray
from efficient_rollout.errors import ProfileError
from efficient_rollout.files import read_json, written_whole

SCHEMA_VERSION = 1
_TOP_LEVEL = ("schema_version", "key", "model", "held_out_error", "provenance")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileKey:
    """Says what a profile belongs to. An empty string is unknown, and matches only an empty string.

    Attributes:
        hardware: Device name.
        model_shape: `ModelShape.description`, or the model's name in a table of measurements.
        scheme: Quantization scheme of the drafter.
        versions: Engine and kernel versions.
        parallel_layout: Tensor and pipeline parallel sizes.
    """

    hardware: str = ""
    model_shape: str = ""
    scheme: str = ""
    versions: str = ""
    parallel_layout: str = ""

    def differences(self, other: "ProfileKey") -> list[str]:
        """Return one line per field that differs, as `field: mine != other's`."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{name}: {mine[name]!r} != {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]


@dataclass(frozen=True, slots=True)
class Profile:
    """Holds a fitted model and what is known about it.

    Attributes:
        key: What it belongs to.
        model: Predicts seconds.
        measured: Median seconds of the points it was fitted on.
        held_out_error: Relative errors by pass on points it was not fitted on; see `calibration.py`.
        provenance: Where it came from; JSON types only.
    """

    key: ProfileKey
    model: LatencyModel
    measured: Mapping[Point, float]
    held_out_error: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def require(self, wanted: ProfileKey, *, remedy: str) -> None:
        """Refuse to be used for another machine, model or engine.

        Args:
            wanted: The key of the present machine and model.
            remedy: The command that makes a matching profile.

        Raises:
            ProfileError: the keys differ.
        """
        differences = self.key.differences(wanted)
        if differences:
            raise ProfileError(
                f"this latency profile belongs to something else ({'; '.join(differences)}); make a new one: {remedy}"
            )


def save_profile(profile: Profile, path: Path) -> None:
    """Write the file, whole or not at all."""
    text = json.dumps(profile_to_dict(profile), indent=1, allow_nan=False) + "\n"
    with written_whole(path) as staged:
        staged.write_text(text, encoding="utf-8")


def load_profile(path: Path, *, remedy: str | None = None) -> Profile:
    """Read a profile.

    Args:
        path: The file.
        remedy: The command that makes a new one; by default the one that reads a table of measurements.

    Raises:
        ProfileError: the file is missing, is not a profile, or is of another schema version.
    """
    again = f"make one with: {remedy or f'efficient-rollout calibrate --from-csv FILE --out {path}'}"
    data = read_json(path, what="the latency profile", remedy=again, error=ProfileError)
    try:
        return profile_from_dict(data)
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}; {again}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"{path} is not a latency profile ({type(error).__name__}: {error}); {again}") from error


def profile_to_dict(profile: Profile) -> dict[str, Any]:
    """Return JSON types only."""
    model = profile.model
    return {
        "schema_version": SCHEMA_VERSION,
        "key": asdict(profile.key),
        "model": {
            "passes": parameters_to_dict(model.log_parameters),
            "row_padding": asdict(model.padding),
            "correction_scales": asdict(model.scales),
            "points": [
                {
                    "pass": PASS_NAMES[point.kind],
                    "num_draft_tokens": point.num_draft_tokens,
                    "batch": point.batch,
                    "context_tokens": point.context_tokens,
                    "median_s": seconds,
                    "correction_weight": float(weight),
                }
                for (point, seconds), weight in zip(profile.measured.items(), model.weights, strict=True)
            ],
        },
        "held_out_error": {name: dict(values) for name, values in profile.held_out_error.items()},
        "provenance": dict(profile.provenance),
    }


def profile_from_dict(data: Any) -> Profile:
    """Do the inverse of `profile_to_dict`.

    Raises:
        ProfileError: an entry is missing, unknown, or out of range.
    """
    if not isinstance(data, dict) or set(data) != set(_TOP_LEVEL):
        raise ProfileError(f"a latency profile has exactly the entries {list(_TOP_LEVEL)}")
    if data["schema_version"] != SCHEMA_VERSION:
        raise ProfileError(f"schema version is {data['schema_version']!r}, this program reads {SCHEMA_VERSION}")
    body = data["model"]
    points = [_point(entry) for entry in body["points"]]
    if not points:
        raise ProfileError("a profile needs at least one measured point")
    weights = np.array([_finite(entry["correction_weight"], "correction_weight") for entry in body["points"]])
    model = LatencyModel(
        parameters_from_dict(body["passes"]),
        _part(RowPadding, body["row_padding"], lambda value: value is False or (isinstance(value, int) and value >= 1)),
        _part(ResidualScales, body["correction_scales"], lambda value: _finite(value, "a scale") > 0.0),
        PointArray.of(points),
        weights,
    )
    seconds = [_finite(entry["median_s"], "median_s") for entry in body["points"]]
    key = _part(ProfileKey, data["key"], lambda value: isinstance(value, str))
    return Profile(key, model, dict(zip(points, seconds, strict=True)), data["held_out_error"], data["provenance"])


def _point(entry: dict[str, Any]) -> Point:
    if entry["pass"] not in PASS_NAMES:
        raise ProfileError(f"pass must be one of {list(PASS_NAMES)}, got {entry['pass']!r}")
    sizes = [entry[name] for name in ("num_draft_tokens", "batch", "context_tokens")]
    if any(isinstance(n, bool) or not isinstance(n, int) for n in sizes) or sizes[0] < 0 or min(sizes[1:]) < 1:
        raise ProfileError(f"a point needs integers num_draft_tokens >= 0, batch >= 1, context_tokens >= 1: {entry}")
    return Point(PASS_NAMES.index(entry["pass"]), *sizes)


def _part(kind: type[Any], entry: dict[str, Any], is_legal: Callable[[Any], bool]) -> Any:
    """Rebuild one of the profile's records, which has every field and no other."""
    names = [field.name for field in fields(kind)]
    if set(entry) != set(names) or not all(map(is_legal, entry.values())):
        raise ProfileError(f"a {kind.__name__} has exactly {names}, each of its own kind: {entry}")
    return kind(**entry)


def _finite(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ProfileError(f"{name} must be a finite number, got {value!r}")
    return float(value)
