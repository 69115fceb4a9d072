"""`efficient-rollout bench kernels`: the products that draft and verify passes are made of, by number of rows."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficient_rollout.bench.calibrate import add_dtype_argument, positive_integers, resolve_dtype
from efficient_rollout.config import SCHEME_NAMES
from efficient_rollout.errors import ConfigError
from efficient_rollout.files import write_json
from efficient_rollout.provenance import result_document
from efficient_rollout.tables import aligned, bracketed

SCHEMA_VERSION = 2


def add_kernels_parser(what: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `bench kernels`; the parsed arguments carry `run`."""
    parser = what.add_parser("kernels", help="time one product by kernel and number of rows; starts no engine")
    parser.add_argument("--outputs", type=int, default=4096, help="of the weight")
    parser.add_argument("--inputs", type=int, default=1024, help="of the weight")
    parser.add_argument("--rows", default="1,2,4,5,8,16,40", help="of the activations")
    parser.add_argument("--rounds", type=int, default=9, help="of all kernels, in turns")
    parser.add_argument("--threads", type=int, default=1, help="of every kernel; an engine on 2 cores has 1")
    add_dtype_argument(parser)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.set_defaults(run=run_bench_kernels)


def run_bench_kernels(args: argparse.Namespace) -> int:
    """Time, print the table, and write the file."""
    rows = positive_integers("--rows", args.rows)
    if args.outputs < 1 or args.inputs < 1 or args.outputs % 128 or args.inputs % 128:
        raise ConfigError(f"--outputs and --inputs must be multiples of 128, got {args.outputs} and {args.inputs}")
    if args.rounds < 1 or args.threads < 1:
        raise ConfigError("--rounds and --threads must be at least 1")
    resolve_dtype(args)
    import torch

    from efficient_rollout.measuring.kernel_timing import time_kernels

    torch.set_num_threads(args.threads)
    asked = {name: getattr(args, name) for name in ("outputs", "inputs", "rounds", "dtype")}
    timed = time_kernels(SCHEME_NAMES, rows=rows, **asked)
    sys.stdout.write(table(timed, rows))
    if args.json:
        write_json(args.json, result_document(args, SCHEMA_VERSION, kernels=timed))
    return 0


def table(timed: Sequence[dict[str, Any]], rows: Sequence[int]) -> str:
    """Return lines of milliseconds per product."""
    lines: dict[str, list[str]] = {}
    for row in timed:
        lines.setdefault(row["kernel"], [row["kernel"]]).append(bracketed(row["seconds"], digits=3, factor=1e3))
    return aligned([["ms by rows", *map(str, rows)], *lines.values()])
