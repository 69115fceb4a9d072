"""The latency profile: a fitted model with its key, its error and its provenance, as one JSON file."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from efficient_rollout.cost_model.latency import LatencyModel
from efficient_rollout.cost_model.residual import ResidualScales
from efficient_rollout.cost_model.roofline import PARAMETERS, RowPadding
from efficient_rollout.cost_model.table import PASS_NAMES, Point, PointArray
from efficient_rollout.errors import ProfileError
from efficient_rollout.files import read_json, written_whole

SCHEMA_VERSION = 1
_TOP_LEVEL = ("schema_version", "key", "model", "held_out_error", "provenance")
_POINT = ("pass", "num_draft_tokens", "batch", "context_tokens", "median_s", "correction_weight")


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
        mine, theirs = asdict(self.key), asdict(wanted)
        differences = [f"{name}: {mine[name]!r} != {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]
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
        return _from_dict(data)
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}; {again}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProfileError(f"{path} is not a latency profile ({type(error).__name__}: {error}); {again}") from error


def profile_to_dict(profile: Profile) -> dict[str, Any]:
    """Return JSON types only."""
    model = profile.model
    seconds = np.exp(model.log_parameters).tolist()
    rows = zip(profile.measured.items(), model.weights.tolist(), strict=True)
    points = [
        (PASS_NAMES[point.kind], point.num_draft_tokens, point.batch, point.context_tokens, median_s, weight)
        for (point, median_s), weight in rows
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "key": asdict(profile.key),
        "model": {
            "passes": {name: dict(zip(PARAMETERS, seconds[i], strict=True)) for i, name in enumerate(PASS_NAMES)},
            "row_padding": asdict(model.padding),
            "correction_scales": asdict(model.scales),
            "points": [dict(zip(_POINT, point, strict=True)) for point in points],
        },
        "held_out_error": {name: dict(values) for name, values in profile.held_out_error.items()},
        "provenance": dict(profile.provenance),
    }


def _from_dict(data: Any) -> Profile:
    """Do the inverse of `profile_to_dict`; any of four errors where an entry is missing, unknown, or out of range."""
    if not isinstance(data, dict) or set(data) != set(_TOP_LEVEL):
        raise ProfileError(f"a latency profile has exactly the entries {list(_TOP_LEVEL)}")
    if data["schema_version"] != SCHEMA_VERSION:
        raise ProfileError(f"schema version is {data['schema_version']!r}, this program reads {SCHEMA_VERSION}")
    body = data["model"]
    if not body["points"]:
        raise ProfileError("a profile needs at least one measured point")
    seconds = [_values(f"pass {name}", body["passes"][name], PARAMETERS, _is_positive) for name in PASS_NAMES]
    rows = [_values("a point", entry, _POINT, lambda value: value in PASS_NAMES or _is_number(value))
            for entry in body["points"]]  # fmt: skip
    points = [_point(*row[:-2]) for row in rows]
    model = LatencyModel(
        np.log(seconds),
        _part(RowPadding, body["row_padding"], lambda value: value is False or (isinstance(value, int) and value >= 1)),
        _part(ResidualScales, body["correction_scales"], _is_positive),
        PointArray.of(points),
        np.array([row[-1] for row in rows], dtype=np.float64),
    )
    key = _part(ProfileKey, data["key"], lambda value: isinstance(value, str))
    measured = {point: float(row[-2]) for point, row in zip(points, rows, strict=True)}
    return Profile(key, model, measured, data["held_out_error"], data["provenance"])


def _point(kind: str, *sizes: int) -> Point:
    if any(type(size) is not int for size in sizes) or sizes[0] < 0 or min(sizes[1:]) < 1:
        raise ProfileError(f"a point needs integers num_draft_tokens >= 0, batch >= 1, context_tokens >= 1: {sizes}")
    return Point(PASS_NAMES.index(kind), *sizes)


def _part(kind: type[Any], entry: dict[str, Any], is_legal: Callable[[Any], bool]) -> Any:
    """Rebuild one of the profile's records."""
    names = [one.name for one in fields(kind)]
    return kind(**dict(zip(names, _values(kind.__name__, entry, names, is_legal), strict=True)))


def _values(what: str, entry: dict[str, Any], names: Sequence[str], is_legal: Callable[[Any], bool]) -> list[Any]:
    """Return the values of a record that has every entry and no other, in the order of their names."""
    if set(entry) != set(names) or not all(map(is_legal, entry.values())):
        raise ProfileError(f"{what} has exactly {list(names)}, each of its own kind: {entry}")
    return [entry[name] for name in names]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0
