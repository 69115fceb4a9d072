"""The latency profile: a fitted model with its key, its error and its provenance, as one JSON file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from efficient_rollout.cost_model.latency import LatencyModel, ResidualScales
from efficient_rollout.cost_model.roofline import PARAMETERS, RowPadding
from efficient_rollout.cost_model.table import PASS_NAMES, Point, PointArray
from efficient_rollout.errors import ProfileError
from efficient_rollout.files import read_json, written_whole

SCHEMA_VERSION = 1


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
        with np.errstate(all="ignore"):
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
    """Do the inverse of `profile_to_dict`; KeyError, TypeError or ValueError where it is something else."""
    if data["schema_version"] != SCHEMA_VERSION:
        raise ProfileError(f"schema version is {data['schema_version']!r}, this program reads {SCHEMA_VERSION}")
    body, measured, weights = data["model"], {}, []
    for entry in body["points"]:
        kind = PASS_NAMES.index(entry["pass"])
        point = Point(kind, entry["num_draft_tokens"], entry["batch"], entry["context_tokens"])
        measured[point] = entry["median_s"]
        weights.append(entry["correction_weight"])
    model = LatencyModel(
        np.log([[body["passes"][name][parameter] for parameter in PARAMETERS] for name in PASS_NAMES]),
        RowPadding(**body["row_padding"]),
        ResidualScales(**body["correction_scales"]),
        PointArray.of(list(measured)),
        np.array(weights),
    )
    if not measured or not np.isfinite(model.seconds(model.anchors)).all():
        raise ProfileError("its numbers predict no seconds")
    return Profile(ProfileKey(**data["key"]), model, measured, data["held_out_error"], data["provenance"])
