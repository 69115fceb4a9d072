"""`efficient-rollout simulate`: replay a rollout trace under one or more rules."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from efficient_rollout.controller.rule import RuleInputs, make_rule, split_names
from efficient_rollout.cost_model.latency import LatencyModel, TickTable
from efficient_rollout.cost_model.profile import load_profile
from efficient_rollout.errors import ConfigError
from efficient_rollout.files import write_json
from efficient_rollout.provenance import recorded_options
from efficient_rollout.simulator.copies import CopySimulator, compare_sources, read_texts
from efficient_rollout.simulator.fleet import World, simulate
from efficient_rollout.simulator.trace import DEFAULT_PROMPT_TOKENS, draw_trace, read_trace
from efficient_rollout.simulator.validation import compare, read_measured, report
from efficient_rollout.tables import aligned


def add_simulate_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `simulate`."""
    parser = subparsers.add_parser("simulate", help="replay a rollout trace under a rule")
    parser.add_argument("--profile", type=Path, required=True, help="latency profile: the true seconds of each tick")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--trace", type=Path, help="JSON lines of prompt_tokens and response_tokens")
    source.add_argument(
        "--against", type=Path, help="replay what bench rollout --json measured, arm by arm, and compare makespans"
    )
    texts = "decode real responses, and compare what copies are taken from: JSON lines of set, prompt_token_ids and "
    source.add_argument("--texts", type=Path, help=f"{texts}response_token_ids")
    source.add_argument("--lengths", help="draw response lengths: lognormal:MEAN,SIGMA,MAX")
    parser.add_argument("--requests", type=int, default=128, help="with --lengths: requests per engine")
    parser.add_argument("--prompt-tokens", type=int, default=DEFAULT_PROMPT_TOKENS, help="with --lengths: per request")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="with --texts: requests at a time")
    parser.add_argument("--draft-tokens", type=int, nargs="+", default=[2, 4, 8, 12], help="with --texts: tried")
    parser.add_argument("--context-tokens", type=float, default=1024.0, help="with --texts: of a pass's seconds")
    parser.add_argument("--engines", type=int, default=1, help="engines; requests are dealt to them in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the lengths, the acceptance and the jitter")
    parser.add_argument("--acceptance", type=float, default=0.9, help="true per-token acceptance")
    parser.add_argument("--jitter", type=float, default=0.02, help="standard deviation of the log of a tick's seconds")
    parser.add_argument("--max-draft-tokens", type=int, default=11, help="upper bound of every decision")
    parser.add_argument(
        "--rule", action="append", help="names separated by commas: never,always:4,cost_model; not with --against"
    )
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.set_defaults(run=run_simulate)


def run_simulate(args: argparse.Namespace) -> int:
    """Replay under each rule, or what was asked for instead, print the result, and write the JSON file."""
    _check(args)
    model = load_profile(args.profile).model
    replay = _against if args.against else _texts if args.texts else _rules
    text, content = replay(args, model)
    sys.stdout.write(text)
    if args.json:
        write_json(args.json, {"settings": recorded_options(args), **content})
    return 0


def _rules(args: argparse.Namespace, model: LatencyModel) -> tuple[str, dict[str, Any]]:
    table = TickTable(model, args.max_draft_tokens)
    if args.trace is None:
        trace = draw_trace(args.lengths, args.requests, args.engines, args.seed, args.prompt_tokens)
    else:
        trace = read_trace(args.trace)
    world = World(table=table, acceptance=args.acceptance, jitter_sd=args.jitter)
    inputs = RuleInputs(max_draft_tokens=args.max_draft_tokens, table=table, prior_acceptance=args.acceptance)
    text, results = "", {}
    for name in split_names(",".join(args.rule)):
        outcome = simulate(trace, [make_rule(name, inputs) for _ in range(args.engines)], world, seed=args.seed)
        mean_engine_s = float(outcome.engine_seconds.mean())
        text += (
            f"{name}: makespan {outcome.makespan_s:.2f} s, {outcome.tokens_per_s:.0f} tokens/s,"
            f" mean engine {mean_engine_s:.2f} s\n"
        )
        results[name] = {
            "makespan_s": outcome.makespan_s,
            "mean_engine_s": mean_engine_s,
            "tokens_per_s": outcome.tokens_per_s,
            "num_tokens": outcome.num_tokens,
            "seconds_by_draft_tokens": {str(k): s for k, s in outcome.seconds_by_length.items()},
            "decisions_by_reason": outcome.ticks_by_reason,
        }
    return text, {"mean_response_tokens": float(trace.response_tokens.mean()), "rules": results}


def _texts(args: argparse.Namespace, model: LatencyModel) -> tuple[str, dict[str, Any]]:
    simulator = CopySimulator(model, args.context_tokens, args.acceptance, max(args.draft_tokens), args.seed)
    rows = [asdict(row) for row in compare_sources(read_texts(args.texts), simulator, args.batches, args.draft_tokens)]
    cells = [["set", "batch", "copies from", "k", "over plain", "over off", "passes a tick", "copies kept"]]
    cells += [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in rows]
    return aligned(cells, left=(0, 2)) + "\n", {"rows": rows}


def _against(args: argparse.Namespace, model: LatencyModel) -> tuple[str, dict[str, Any]]:
    max_draft_tokens, measured = read_measured(args.against)
    compared = compare(measured, TickTable(model, max_draft_tokens), seed=args.seed, jitter_sd=args.jitter)
    return report(compared), {"arms": compared}


def _check(args: argparse.Namespace) -> None:
    needs_rule = args.against is None and args.texts is None
    if (args.rule is None) == needs_rule:
        raise ConfigError(
            "give --rule NAME[,NAME...], or --against FILE, whose arms name the rules, or --texts FILE; not both"
        )
    if min([*args.batches, *args.draft_tokens]) < 1 or max(args.draft_tokens) > 64:
        raise ConfigError("--batches and --draft-tokens take whole numbers from 1 on, the latter up to 64")
    if not 1 <= args.max_draft_tokens <= 64:
        raise ConfigError(f"--max-draft-tokens is {args.max_draft_tokens}; give 1 to 64")
    if not 0.0 <= args.acceptance <= 1.0 or not 0.0 <= args.jitter <= 1.0:
        raise ConfigError(f"--acceptance ({args.acceptance}) and --jitter ({args.jitter}) must be 0 to 1")
