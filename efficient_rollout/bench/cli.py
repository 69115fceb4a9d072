"""`efficient-rollout bench rollout`: real engines side by side on the same work."""

import argparse
import sys
from pathlib import Path

import numpy as np

from efficient_rollout.bench.calibrate import (
    add_comparison_arguments,
    add_scheme_argument,
    natural_prompts,
    positive_integers,
    resolve_engine_arguments,
    settings_of,
)
from efficient_rollout.bench.drafter_cli import add_drafter_parser
from efficient_rollout.bench.kernels_cli import add_kernels_parser
from efficient_rollout.bench.report import SCHEMA_VERSION, draw, require_matplotlib, say, summarize, table
from efficient_rollout.bench.rollout import ROLLOUT, BenchPlan, check_arms, parse_arms, run_plan
from efficient_rollout.bench.work import PromptSource, RandomPrompts, Request, eos_token_ids, requests_of, shortened
from efficient_rollout.errors import ConfigError
from efficient_rollout.files import write_json
from efficient_rollout.policy_config import read_policy_config
from efficient_rollout.provenance import result_document
from efficient_rollout.simulator.trace import DEFAULT_PROMPT_TOKENS, Trace, draw_trace, read_trace

_DEFAULT_REQUESTS = 32
_BATCH = "batch "


def add_bench_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `bench`; the parsed arguments carry `run`."""
    parser = subparsers.add_parser("bench", help="measure side by side on real engines")
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    rollout = what.add_parser("rollout", help="decode the same work with each arm, in turns")
    rollout.add_argument(
        "--arms",
        default="plain,always:4",
        help="plain, ngram[:K], suffix[:K], table, or rules of the controller; off:RULE, own:RULE, group:RULE by "
        "source of copies",
    )
    rollout.add_argument(
        "--profile", type=Path, help="for table, published and cost_model; else measured once, and kept"
    )
    rollout.add_argument("--max-draft-tokens", type=int, default=11, help="upper bound of every decision")
    lengths = rollout.add_mutually_exclusive_group(required=True)
    lengths.add_argument("--trace", type=Path, help="JSON lines of prompt_tokens and response_tokens")
    lengths.add_argument("--lengths", help="draw response lengths: lognormal:MEAN,SIGMA,MAX")
    rollout.add_argument("--requests", type=int, help=f"of a rollout; default {_DEFAULT_REQUESTS}, or the whole trace")
    rollout.add_argument("--prompt-tokens", type=int, default=DEFAULT_PROMPT_TOKENS, help="with --lengths: per request")
    rollout.add_argument("--fixed-batches", help="then also rounds of so many requests of one length each: 1,2,4,8")
    rollout.add_argument("--fixed-tokens", type=int, default=64, help="with --fixed-batches: per request")
    rollout.add_argument("--natural-eos", action="store_true", help="responses end where the policy ends them")
    rollout.add_argument("--draws", type=int, default=3, help="with --natural-eos, instead of rounds: draws of prompts")
    add_scheme_argument(rollout)
    add_comparison_arguments(rollout, rounds=3)
    rollout.set_defaults(run=run_bench_rollout)
    add_drafter_parser(what)
    add_kernels_parser(what)


def run_bench_rollout(args: argparse.Namespace) -> int:
    """Run every arm, print the table, and write the files."""
    plan = _plan(args)
    if args.png:
        require_matplotlib()
    results = run_plan(
        plan,
        lambda name, arm, done: say(f"{name}: {arm.name} {done.seconds:.2f} s, {done.tokens_per_second:.1f} tokens/s"),
    )
    fixed = {name: summarize(rounds, is_greedy=args.temperature == 0.0) for name, rounds in results.items()}
    arms = fixed.pop(ROLLOUT)
    sys.stdout.write(table(arms))
    fixed = {name.removeprefix(_BATCH): rows for name, rows in fixed.items()}
    for batch, rows in fixed.items():
        sys.stdout.write(f"\n{batch} running requests throughout\n{table(rows)}")
    if args.json:
        work = [[[len(r.prompt_token_ids), r.max_tokens] for r in requests] for requests in plan.rounds[ROLLOUT]]
        write_json(args.json, result_document(args, SCHEMA_VERSION, work=work, arms=arms, fixed_batches=fixed))
    if args.png:
        draw(arms, args.png)
    return 0


def _plan(args: argparse.Namespace) -> BenchPlan:
    if args.rounds < 1 or args.draws < 1 or args.temperature < 0.0 or not 1 <= args.max_draft_tokens <= 16:
        raise ConfigError("--rounds and --draws must be at least 1, --temperature 0, --max-draft-tokens 1 to 16")
    arms = parse_arms(args.arms)
    check_arms(arms, max_draft_tokens=args.max_draft_tokens, profile=args.profile)
    trace, config = _trace(args), read_policy_config(args.model)
    source = natural_prompts(args) or RandomPrompts(config.size("vocab_size"))
    if args.natural_eos and isinstance(source, RandomPrompts):
        raise ConfigError("--natural-eos needs --prompts or --task: no policy ends a response to random tokens")
    longest, num_rounds = (int(trace.response_tokens.max()), args.draws) if args.natural_eos else (None, args.rounds)
    rounds = {ROLLOUT: [requests_of(trace, source, args.seed + number, longest) for number in range(num_rounds)]}
    if args.fixed_batches is not None:
        rounds |= _fixed(args, source)
    resolve_engine_arguments(args)
    drafter = {"scheme": args.scheme}
    others = {"verify_kernel": args.verify_kernel, "gpu_certificate_path": args.gpu_certificate}
    settings = settings_of(drafter, args.max_draft_tokens, **others)
    if args.profile is None and any(arm.needs_profile for arm in arms):
        from efficient_rollout.engine.profiles import ensure_profile

        args.profile = ensure_profile(str(args.model), settings, dtype=args.dtype, is_compiled=args.compile)
        check_arms(arms, max_draft_tokens=args.max_draft_tokens, profile=args.profile)
    return BenchPlan(
        model=str(args.model),
        arms=arms,
        rounds=rounds,
        settings=settings_of(drafter, args.max_draft_tokens, profile=args.profile, **others),
        temperature=args.temperature,
        eos_token_ids=eos_token_ids(config) if args.natural_eos else (),
        dtype=args.dtype,
        is_compiled=args.compile,
    )


def _fixed(args: argparse.Namespace, source: PromptSource) -> dict[str, list[list[Request]]]:
    """Return rounds by running requests: so many of one length, so that all run to its end."""
    if args.natural_eos or args.fixed_tokens < 1:
        raise ConfigError(
            "--fixed-batches forces every length: leave out --natural-eos, and give --fixed-tokens 1 or more"
        )
    works = {}
    for batch in positive_integers("--fixed-batches", args.fixed_batches):
        trace = Trace(np.full(batch, args.prompt_tokens), np.full(batch, args.fixed_tokens))
        works[f"{_BATCH}{batch}"] = [requests_of(trace, source, args.seed + number) for number in range(args.rounds)]
    return works


def _trace(args: argparse.Namespace) -> Trace:
    if args.trace is None:
        return draw_trace(args.lengths, args.requests or _DEFAULT_REQUESTS, 1, args.seed, args.prompt_tokens)
    trace = read_trace(args.trace)
    return trace if args.requests is None else shortened(trace, args.requests)
