"""The latency profile: a fitted model with its key, its error and its provenance, as one JSON file."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from efficient_rollout.cost_model.latency import LatencyModel, ResidualScales
from efficient_rollout.cost_model.roofline import PARAMETERS, RowPadding
from efficient_rollout.cost_model.table import PASS_NAMES, Point, PointArray
from efficient_rollout.errors import ProfileError
from efficient_rollout.files import read_json, written_whole

SCHEMA_VERSION = 1
_SIZES = ("num_draft_tokens", "batch", "context_tokens")  # of a measured point
_LARGEST = 1e18  # of any number: nothing overflows


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileKey:
    """Says what a profile belongs to. An empty string is unknown, and matches only an empty string.

    `model_shape` is `ModelShape.description`, or the model's name in a table of measurements.
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

        Raises:
            ProfileError: the keys differ; it names `remedy`, the command that makes a matching profile.
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

    Raises:
        ProfileError: the file is missing, is not a profile, or is of another schema version. It names `remedy`, the
            command that makes a new one; by default the one that reads a table of measurements.
    """
    again = f"make one with: {remedy or f'efficient-rollout calibrate --from-csv FILE --out {path}'}"
    data = read_json(path, what="the latency profile", remedy=again, error=ProfileError)
    try:
        return _from_dict(data)
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}; {again}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"{path} is not a latency profile ({type(error).__name__}: {error}); {again}") from error


def profile_to_dict(profile: Profile) -> dict[str, Any]:
    """Return JSON types only."""
    model = profile.model
    seconds = np.exp(model.log_parameters).tolist()
    return {
        "schema_version": SCHEMA_VERSION,
        "key": asdict(profile.key),
        "model": {
            "passes": {name: dict(zip(PARAMETERS, seconds[i], strict=True)) for i, name in enumerate(PASS_NAMES)},
            "row_padding": asdict(model.padding),
            "correction_scales": asdict(model.scales),
            "points": [
                {
                    "pass": PASS_NAMES[point.kind],
                    "num_draft_tokens": point.num_draft_tokens,
                    "batch": point.batch,
                    "context_tokens": point.context_tokens,
                    "median_s": median_s,
                    "correction_weight": weight,
                }
                for (point, median_s), weight in zip(profile.measured.items(), model.weights.tolist(), strict=True)
            ],
        },
        "held_out_error": {name: dict(values) for name, values in profile.held_out_error.items()},
        "provenance": dict(profile.provenance),
    }


def _from_dict(data: Any) -> Profile:
    """Do the inverse of `profile_to_dict`; ProfileError, KeyError, TypeError or ValueError for anything else."""
    if data["schema_version"] != SCHEMA_VERSION:
        raise ProfileError(f"schema version is {data['schema_version']!r}, this program reads {SCHEMA_VERSION}")
    _part(data, ("schema_version", "key", "model", "held_out_error", "provenance"))
    body = _part(data["model"], ("passes", "row_padding", "correction_scales", "points"))
    measured, weights = {}, []
    for entry in body["points"]:
        kind, *sizes, median_s, weight = _part(entry, ("pass", *_SIZES, "median_s", "correction_weight")).values()
        if not all(map(_is_whole, sizes)) or min(sizes[1:]) < 1 or not _is_number(weight) or not _is_positive(median_s):
            raise ProfileError(
                f"a point of the profile has whole sizes, positive seconds and a weight, got {entry!r:.300}"
            )
        measured[Point(PASS_NAMES.index(kind), *sizes)] = median_s
        weights.append(weight)
    if not measured:
        raise ProfileError("a profile needs at least one measured point")
    passes = _part(body["passes"], PASS_NAMES)
    model = LatencyModel(
        np.log([list(_part(passes[name], PARAMETERS, _is_positive).values()) for name in PASS_NAMES]),
        _record(
            RowPadding, body["row_padding"], lambda value: type(value) is bool or (_is_whole(value) and value >= 1)
        ),
        _record(ResidualScales, body["correction_scales"], _is_positive),
        PointArray.of(list(measured)),
        np.array(weights),
    )
    key = _record(ProfileKey, data["key"], lambda value: isinstance(value, str))
    return Profile(key, model, measured, data["held_out_error"], data["provenance"])


def _record(kind: type[Any], entry: Any, is_legal: Callable[[Any], bool]) -> Any:
    return kind(**_part(entry, [item.name for item in fields(kind)], is_legal))


def _part(entry: Any, names: Sequence[str], is_legal: Callable[[Any], bool] = lambda _: True) -> dict[str, Any]:
    """Return a part of a profile in the order of its names: it has all of them and no other, each of its own kind."""
    if not isinstance(entry, dict) or set(entry) != set(names) or not all(map(is_legal, entry.values())):
        raise ProfileError(f"a profile has exactly {list(names)} there, each of its own kind, got {entry!r:.300}")
    return {name: entry[name] for name in names}


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0
