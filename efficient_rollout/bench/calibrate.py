"""`efficient-rollout calibrate`: a latency profile from a running engine, or from a table of measurements.

And what other commands that measure are asked in the same words.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from efficient_rollout.bench.work import FixedPrompts, TaskPrompts, read_prompts
from efficient_rollout.config import SCHEME_NAMES, Settings
from efficient_rollout.cost_model.cli import add_calibrate_arguments, report, run_calibrate
from efficient_rollout.cost_model.profile import save_profile
from efficient_rollout.errors import ConfigError
from efficient_rollout.provenance import provenance

_AUTO = "auto"
_BUSY_SPREAD = 0.15


def add_calibrate_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `calibrate`; the parsed arguments carry `run`."""
    parser = subparsers.add_parser("calibrate", help="fit a latency profile")
    source = add_calibrate_arguments(parser)
    source.add_argument("--model", type=Path, help="a policy: start an engine on it and measure")
    engine = parser.add_argument_group("with --model")
    add_scheme_argument(engine)
    add_engine_arguments(engine)
    engine.add_argument(
        "--seconds", type=float, default=60.0, help="budget of the measurements, engine start not in it"
    )
    engine.add_argument("--batches", default="1,2,4,8,16,32", help="running requests")
    engine.add_argument("--contexts", default="128,512,2048", help="tokens per request; those that fit are used")
    engine.add_argument("--lengths", default="1,2,4,8", help="draft tokens")
    engine.add_argument("--tensor-parallel-size", type=int, default=1, help="workers of the engine")
    parser.set_defaults(run=run)


def add_scheme_argument(parser: "argparse._ActionsContainer") -> None:
    """Add the drafter's scheme and the policy's kernel, for the commands with one self-drafting engine."""
    parser.add_argument("--scheme", default="int8", help=f"of the drafter: {', '.join(SCHEME_NAMES)}")
    kernels = get_args(Settings.model_fields["verify_kernel"].annotation)
    what = "of the policy's own layers; plain engines have vLLM's"
    parser.add_argument("--verify-kernel", default="auto", choices=kernels, help=what)


def add_engine_arguments(parser: "argparse._ActionsContainer") -> None:
    """Add the arguments that say how engines are started, for every command that starts some."""
    add_dtype_argument(parser)
    parser.add_argument("--compile", action="store_true", help="engines in compiled mode, as always on a GPU")
    parser.add_argument("--gpu-certificate", metavar="FILE", help="of gpu-check, where it is not in the cache")


def add_comparison_arguments(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Add what every comparison of engines on some work is asked, with a default number of rounds."""
    parser.add_argument("--model", type=Path, required=True, help="the policy's directory")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompts", type=Path, help="JSON lines of prompt or prompt_token_ids; default random tokens")
    prompts.add_argument("--task", metavar="SIZE", help="prompts of the embedded task for a policy of this size")
    parser.add_argument("--rounds", type=int, default=rounds, help="of all arms, in turns")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the sampling; 0 is greedy")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts, and of lengths that are drawn")
    add_engine_arguments(parser)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--png", type=Path, help="where to draw it; needs matplotlib")


def settings_of(
    drafter: Mapping[str, Any], max_draft_tokens: int, *, profile: Path | None = None, **others: Any
) -> Settings:
    """Return the settings of a self-drafting engine that is told when to draft; arguments are named as settings are."""
    controller = {"rule": "never", "max_draft_tokens": max_draft_tokens}
    if profile is not None:
        controller["profile"] = str(profile.resolve())
    return Settings.parse({**others, "drafter": drafter, "controller": controller}, where="the command line")


def natural_prompts(args: argparse.Namespace, min_response_tokens: int = 0) -> FixedPrompts | TaskPrompts | None:
    """Return where the arguments of `add_comparison_arguments` take prompts from; None for random tokens."""
    if args.prompts is not None:
        return read_prompts(args.prompts, str(args.model))
    return TaskPrompts(args.task, str(args.model), min_response_tokens) if args.task is not None else None


def add_dtype_argument(parser: "argparse._ActionsContainer") -> None:
    """Add the argument for the policy's dtype, or `auto`."""
    what = "of the policy; auto: float32 on a CPU without AVX512, whose bfloat16 products are slow, else bfloat16"
    parser.add_argument("--dtype", default=_AUTO, choices=(_AUTO, "bfloat16", "float16", "float32"), help=what)


def resolve_dtype(args: argparse.Namespace) -> None:
    """Put the dtype that `auto` means on this machine in its place, so that results say which it was."""
    if args.dtype == _AUTO:
        from efficient_rollout.measuring.starting import fastest_dtype

        args.dtype = fastest_dtype()


def resolve_engine_arguments(args: argparse.Namespace) -> None:
    """Do as `resolve_dtype` does, and the same for the mode that engines have on this machine."""
    from efficient_rollout.engine.environment import device_type

    resolve_dtype(args)
    args.compile = args.compile or device_type() == "cuda"


def positive_integers(option: str, text: str) -> tuple[int, ...]:
    """Return the distinct numbers of a comma-separated list, ascending.

    Raises:
        ConfigError: One is no integer, or below 1.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{option} must be positive integers separated by commas, got {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def run(args: argparse.Namespace) -> int:
    """Measure or read, fit, save, and print the error."""
    if args.model is None:
        return run_calibrate(args)
    from efficient_rollout.measuring.probe import ProbeSettings, calibrate_engine

    resolve_engine_arguments(args)
    grid = {name: positive_integers(f"--{name}", getattr(args, name)) for name in ("batches", "contexts", "lengths")}
    probe = ProbeSettings(
        **grid,
        max_points=args.max_points,
        seconds=args.seconds,
        dtype=args.dtype,
        is_compiled=args.compile,
        tensor_parallel_size=args.tensor_parallel_size,
    )
    settings = settings_of(
        {"scheme": args.scheme},
        max(probe.lengths),
        verify_kernel=args.verify_kernel,
        gpu_certificate_path=args.gpu_certificate,
    )
    profile = calibrate_engine(str(args.model), settings, probe, provenance={"source": "engine", **provenance()})
    save_profile(profile, args.out)
    spent = profile.provenance
    sys.stdout.write(
        f"{report(profile, args.out)}  measured for {spent['measuring_s']:.1f} s, {spent['num_ticks']} ticks,"
        f" after {spent['engine_start_s']:.1f} s of engine start\n"
    )
    if spent["tick_spread"] > _BUSY_SPREAD:
        sys.stdout.write(
            f"  warning: the middle half of a point's ticks differ by {spent['tick_spread']:.0%}: something else was"
            f" running on these cores; measure again when it is not\n"
        )
    return 0
