"""`efficient-rollout bench drafter`: what a draft step, a verify pass and a weight sync cost, and what it gains."""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from efficient_rollout.bench.acceptance import (
    SEGMENTS,
    AcceptancePlan,
    acceptance_table,
    check_checkpoints,
    measure_acceptance,
)
from efficient_rollout.bench.calibrate import (
    add_comparison_arguments,
    natural_prompts,
    positive_integers,
    resolve_engine_arguments,
    settings_of,
)
from efficient_rollout.bench.drafter import PLAIN_COMPILED, PLAIN_EAGER, DrafterPlan, measure, running_engines
from efficient_rollout.bench.drafter_report import SCHEMA_VERSION, draw_parts, summarize, table
from efficient_rollout.bench.report import require_matplotlib, say
from efficient_rollout.bench.work import RandomPrompts, TaskPrompts, eos_token_ids
from efficient_rollout.config import Settings
from efficient_rollout.errors import ConfigError
from efficient_rollout.files import write_json
from efficient_rollout.policy_config import PolicyConfig, read_policy_config
from efficient_rollout.provenance import result_document

_MAX_DRAFT_TOKENS = 16
_TICKS_PER_RUN = 7  # at least, were every draft accepted; the last one drafts less
# Some responses end before their contexts are long enough.
_PROMPTS_PER_SEQUENCE = 2
_POLICY_LABEL = "policy"


def add_drafter_parser(what: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `bench drafter`; the parsed arguments carry `run`."""
    parser = what.add_parser("drafter", help="time draft steps, verify passes and weight syncs against plain decoding")
    parser.add_argument(
        "--schemes",
        default="int8,int4",
        help="one engine each; NAME[:SETTING=VALUE...] with other settings of the drafter, as in int4:group_size=128, "
        "or with verify_kernel=stock",
    )
    parser.add_argument("--batches", default="1,8", help="running requests")
    parser.add_argument("--context", type=int, default=256, help="mean tokens per request, prompt included")
    parser.add_argument("--lengths", default="1,2,4,8", help="fixed draft tokens; 0 is always measured too")
    parser.add_argument("--response-tokens", type=int, default=64, help="emitted by each request of a run")
    add_comparison_arguments(parser, rounds=5)
    parser.add_argument(
        "--compiled-baseline",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a compiled plain engine beside the eager one; the faster of them is compared with",
    )
    acceptance = parser.add_argument_group("acceptance per draft position")
    acceptance.add_argument("--acceptance", action="store_true", help="measure it; needs --task or --prompts")
    acceptance.add_argument("--acceptance-prompts", type=int, default=32, help="responses")
    acceptance.add_argument(
        "--also-model", action="append", default=[], metavar="LABEL=DIR", help="another checkpoint of the same shape"
    )
    parser.set_defaults(run=run_bench_drafter)


def run_bench_drafter(args: argparse.Namespace) -> int:
    """Measure, print the tables, and write the file."""
    plan, acceptance_plan = plan_of(args)
    if args.png:
        require_matplotlib()
    with running_engines(plan) as engines:
        measured = measure(plan, engines, say)
        rows = []
        if acceptance_plan is not None:
            for row in measure_acceptance(acceptance_plan, {name: engines[name] for name in plan.drafters}):
                rows.append(row)
                say(f"acceptance: {row['checkpoint']}, {row['drafter']}, up to token {row['to_token']}")
    summary = summarize(plan, measured)
    sys.stdout.write("\n" + table(summary))
    if rows:
        sys.stdout.write("\n" + acceptance_table(rows))
    if args.json:
        runs = {"runs": [asdict(run) for run in measured.runs], "weight_sync_runs": measured.syncs}
        write_json(args.json, result_document(args, SCHEMA_VERSION, **summary, acceptance=rows, **runs))
    if args.png:
        draw_parts(summary["drafting"], args.png)
    return 0


def plan_of(args: argparse.Namespace) -> tuple[DrafterPlan, AcceptancePlan | None]:
    """Return the plans, with everything checked before an engine starts; resolve `args.dtype`.

    Raises:
        ConfigError: An argument is out of range, or does not fit another.
        InputFileError: The policy or the prompts cannot be read.
    """
    batches, lengths = (positive_integers(f"--{name}", getattr(args, name)) for name in ("batches", "lengths"))
    _check_numbers(args, max(lengths))
    drafters = drafters_of(args.schemes, max(lengths), args.gpu_certificate)
    config = read_policy_config(args.model)
    acceptance = _acceptance(args, config, max(lengths)) if args.acceptance else None
    if args.also_model and acceptance is None:
        raise ConfigError("--also-model is for --acceptance; add it")
    num_prompts, half = _PROMPTS_PER_SEQUENCE * max(batches), args.response_tokens // 2
    source = natural_prompts(args, args.context + half)
    if source is None:
        prompts = RandomPrompts(config.size("vocab_size")).draw([args.context - half] * num_prompts, args.seed)
    else:
        prompts = source.draw([0] * num_prompts, args.seed)
    resolve_engine_arguments(args)
    plan = DrafterPlan(
        model=str(args.model),
        drafters=drafters,
        batches=batches,
        lengths=lengths,
        context_tokens=args.context,
        response_tokens=args.response_tokens,
        prompts=prompts,
        eos_token_ids=() if source is None else eos_token_ids(config),
        rounds=args.rounds,
        temperature=args.temperature,
        dtype=args.dtype,
        is_compiled=args.compile,
        plain_arms=(PLAIN_EAGER, PLAIN_COMPILED) if args.compiled_baseline else (PLAIN_EAGER,),
        longest_tokens=0 if acceptance is None else acceptance.longest_tokens,
    )
    return plan, acceptance


def _check_numbers(args: argparse.Namespace, most: int) -> None:
    least = _TICKS_PER_RUN * (most + 1)
    if most > _MAX_DRAFT_TOKENS:
        raise ConfigError(f"--lengths go up to {_MAX_DRAFT_TOKENS}, got {args.lengths}")
    if args.response_tokens < least:
        raise ConfigError(
            f"--response-tokens is {args.response_tokens}; {most} draft tokens need {least}, or a run has too few ticks"
        )
    if args.context <= args.response_tokens // 2:
        raise ConfigError(
            f"--context {args.context} must exceed half of --response-tokens {args.response_tokens}: it is their mean"
        )
    if args.rounds < 1 or args.temperature < 0.0 or args.acceptance_prompts < 1:
        raise ConfigError("--rounds and --acceptance-prompts must be at least 1, --temperature 0")


def drafters_of(text: str, max_draft_tokens: int, gpu_certificate_path: str | None = None) -> dict[str, Settings]:
    """Return the settings by the arm's name, from `NAME[:SETTING=VALUE...]`, separated by commas.

    Raises:
        ConfigError: A scheme or a setting is unknown or malformed, or an arm repeated.
    """
    drafters: dict[str, Settings] = {}
    for name in filter(None, (piece.strip() for piece in text.split(","))):
        scheme, *assignments = name.split(":")
        pairs = [assignment.partition("=") for assignment in assignments]
        if not all(equals for _, equals, _ in pairs):
            raise ConfigError(f"--schemes takes NAME:SETTING=VALUE, got {name!r}")
        if name in drafters:
            raise ConfigError(f"--schemes repeats {name}")
        drafter = {"scheme": scheme} | {key: _value(value) for key, _, value in pairs}
        kernel = drafter.pop("verify_kernel", "auto")
        drafters[name] = settings_of(
            drafter, max_draft_tokens, verify_kernel=kernel, gpu_certificate_path=gpu_certificate_path
        )
    if not drafters:
        raise ConfigError("--schemes names none; give at least one, as in int8")
    return drafters


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _acceptance(args: argparse.Namespace, config: PolicyConfig, num_draft_tokens: int) -> AcceptancePlan:
    source = natural_prompts(args)
    if source is None:
        raise ConfigError("--acceptance needs --task or --prompts: on random tokens it would mean nothing")
    checkpoints = {_POLICY_LABEL: args.model}
    for text in args.also_model:
        label, equals, path = text.partition("=")
        if not (label and equals and path) or label in checkpoints:
            raise ConfigError(f"--also-model takes LABEL=DIR with a new label each, got {text!r}")
        checkpoints[label] = Path(path)
    check_checkpoints(checkpoints)
    prompts = source.draw([0] * args.acceptance_prompts, args.seed)
    if isinstance(source, TaskPrompts):
        from efficient_rollout.tasks.training_plans import level_of

        # Most worked answers are short: half of the prompts ask for one up to the middle of the last segment, or of
        # the longest worked answers of this size.
        long_tokens = min(sum(SEGMENTS[-1]) // 2, level_of(source.size).max_response_tokens * 3 // 4)
        num_long = args.acceptance_prompts // 2
        prompts[:num_long] = replace(source, min_response_tokens=long_tokens).draw([0] * num_long, args.seed)
    return AcceptancePlan(
        checkpoints=checkpoints,
        prompts=prompts,
        eos_token_ids=eos_token_ids(config),
        num_draft_tokens=num_draft_tokens,
    )
