"""`efficient-rollout calibrate --from-csv`: a latency profile from a table of measurements."""

import argparse
import hashlib
import sys
from importlib import metadata
from pathlib import Path

from efficient_rollout.cost_model.calibration import DEFAULT_MAX_POINTS, calibrate_from_table
from efficient_rollout.cost_model.model_shape import read_model_shape
from efficient_rollout.cost_model.profile import Profile, save_profile
from efficient_rollout.cost_model.table import read_table


def add_calibrate_arguments(parser: argparse.ArgumentParser) -> "argparse._MutuallyExclusiveGroup":
    """Add the arguments of calibrating from a table; another source may be added to the group that is returned."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--from-csv", type=Path, help="measured latencies, one row a point")
    parser.add_argument("--hf-config", type=Path, help="the model's config.json, for byte and operation counts")
    parser.add_argument("--max-points", type=int, default=DEFAULT_MAX_POINTS, help="use at most this many rows")
    parser.add_argument("--out", type=Path, required=True, help="the profile to write")
    return source


def run_calibrate(args: argparse.Namespace) -> int:
    """Fit, save, and print the error on the rows that were not used."""
    source: Path = args.from_csv
    table = read_table(source)
    shape = read_model_shape(args.hf_config) if args.hf_config else None
    provenance = {
        "source": source.name,
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "model": table.model,
        "versions": {name: metadata.version(name) for name in ("numpy", "scipy")},
    }
    profile = calibrate_from_table(table, max_points=args.max_points, shape=shape, provenance=provenance)
    save_profile(profile, args.out)
    sys.stdout.write(report(profile, args.out))
    return 0


def report(profile: Profile, path: Path) -> str:
    """Return what was written, and how far off it is where it was not fitted."""
    lines = [f"wrote {path}: fitted on {len(profile.measured)} points"]
    for name, error in profile.held_out_error.items():
        lines.append(
            f"  {name}: median error {error['median']:.1%}, mean {error['mean']:.1%}, worst {error['max']:.1%}"
            f" on {int(error['num_points'])} points"
        )
    return "\n".join(lines) + "\n"
