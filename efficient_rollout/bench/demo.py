"""`efficient-rollout demo`: plain vLLM and self-drafting beside each other, on the same questions and seeds."""

import argparse
import itertools
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from efficient_rollout.bench.calibrate import settings_of
from efficient_rollout.bench.report import say, summarize
from efficient_rollout.bench.rollout import PLAIN, ROLLOUT, Arm, BenchPlan, RoundResult, parse_arms, run_plan
from efficient_rollout.bench.work import Request, TaskPrompts
from efficient_rollout.errors import ConfigError, EfficientRolloutError
from efficient_rollout.metrics import names
from efficient_rollout.tables import aligned, bracketed

_ROUNDS, _WARM_UP_TOKENS = 2, 8
# In float32 every response comes out the same here; in bfloat16 passes of several rows round otherwise than of one.
_DTYPES = ("float32", "bfloat16")
# Of the time between rollouts that this process computed: below it the machine was busy with something else.
_LEAST_SHARE = 0.9


def add_demo_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `demo`; the parsed arguments' `run` shows both and returns the exit code."""
    parser = subparsers.add_parser(
        "demo",
        help="see plain vLLM and self-drafting beside each other",
        description="Answer a few questions with plain vLLM and with self-drafting, in turns, with the same seeds, and "
        "say how fast each was, whether the responses are the same, and whether drafting pays on this machine.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--size", default="smollm2", help="the policy: smollm2, small or nano")
    parser.add_argument("--scheme", default="int8", help="of the drafter's weights")
    parser.add_argument("--draft-tokens", type=int, default=4, metavar="K", help="of every verify pass")
    parser.add_argument("--requests", type=int, default=4, metavar="N", help="that run at once")
    parser.add_argument("--tokens", type=int, default=32, metavar="T", help="of each response")
    parser.add_argument("--temperature", type=float, default=0.6, help="of the sampling")
    parser.add_argument("--dtype", choices=_DTYPES, default=_DTYPES[0], help="of the policy")
    parser.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> int:
    """Answer with both, and print what came of it.

    Raises:
        ConfigError: A number is out of range, or there is no such policy or scheme.
        EfficientRolloutError: The drafter failed.
    """
    if min(args.requests, args.tokens, args.draft_tokens) < 1 or args.temperature < 0.0:
        raise ConfigError("--requests, --tokens and --draft-tokens must be at least 1, --temperature at least 0")
    from efficient_rollout.tasks.policy import ensure_policy

    # A policy that is not in the cache yet is converted beside the imports; what is wrong with it is told below.
    policy = [sys.executable, "-m", "efficient_rollout", "policy", "--size", args.size]
    with subprocess.Popen(policy, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        from efficient_rollout.measuring.starting import start_in_process
    model = str(ensure_policy(args.size))
    prompts = TaskPrompts(args.size, model).draw([0] * args.requests, seed=0)
    plan = BenchPlan(
        model=model,
        arms=parse_arms(f"always:{args.draft_tokens}"),
        rounds={ROLLOUT: [[Request(prompt, args.tokens) for prompt in prompts]] * _ROUNDS},
        settings=settings_of({"scheme": args.scheme}, args.draft_tokens),
        temperature=args.temperature,
        dtype=args.dtype,
        first_seed=0,
        warm_up_tokens=_WARM_UP_TOKENS,
    )
    times: list[tuple[float, float]] = []

    def on_result(name: str, arm: Arm, result: RoundResult) -> None:
        times.append((time.perf_counter(), time.process_time()))
        say(f"{name}: {_name(arm.name)}, {result.tokens_per_second:.1f} tokens/s")

    logging.disable(logging.WARNING)  # This command's own lines are the point, and engines set levels anew.
    try:
        rounds = run_plan(plan, on_result, start_in_process)[ROLLOUT]
    finally:
        logging.disable(logging.NOTSET)
    sys.stdout.write(_shown(rounds, model) + _busy(times))
    return 0


def _busy(times: Sequence[tuple[float, float]]) -> str:
    """Return a warning, or nothing, from the clock and this process's own seconds at the end of each rollout."""
    shares = [(later[1] - first[1]) / (later[0] - first[0]) for first, later in itertools.pairwise(times)]
    if min(shares) > _LEAST_SHARE:
        return ""
    return "Something else kept this machine busy meanwhile: trust no figure here but the responses.\n"


def _name(arm: str) -> str:
    return "plain vLLM" if arm == PLAIN else "self-drafting"


def _shown(rounds: Mapping[str, Sequence[RoundResult]], model: str) -> str:
    plain, ours = rounds.values()
    if any(result.metrics.get(names.DRAFTER_FAULTS) for result in ours):
        raise EfficientRolloutError(
            "the drafter failed and was turned off, so there is nothing to compare; `efficient-rollout bench rollout` "
            "with the same policy logs why, and `efficient-rollout doctor` says what this machine lacks"
        )
    arms = summarize(rounds, is_greedy=False)
    lines = [["", "tokens/s", "over plain", "tokens per pass of the policy"]]
    for name, arm in arms.items():
        length = statistics.fmean(result.metrics.get(names.MEAN_ACCEPTED_LENGTH, 1.0) for result in rounds[name])
        speed = f"{arm['tokens_per_second']['median']:.1f}"
        lines.append([_name(name), speed, bracketed(arm["speedup"], digits=2), f"{length:.2f}"])
    from transformers import AutoTokenizer

    first = AutoTokenizer.from_pretrained(model).decode(list(plain[0].token_ids[0]), skip_special_tokens=True)
    return (
        f"\n{aligned(lines)}\nThe first response begins: {' '.join(str(first).split())[:160]}\n"
        f"{_same(plain[0].token_ids, ours[0].token_ids)}{_verdict([*arms.values()][1]['speedup'])}"
    )


def _same(plain: Sequence[Sequence[int]], ours: Sequence[Sequence[int]]) -> str:
    """Say how many responses are the same, and how many tokens the others have in common at their beginning."""
    parted = [
        next(place for place, (mine, theirs) in enumerate(itertools.zip_longest(*pair)) if mine != theirs)
        for pair in zip(plain, ours, strict=True)
        if pair[0] != pair[1]
    ]
    same = len(plain) - len(parted)
    if not parted:
        return f"Both gave the same {same} responses, token by token.\n"
    first, last = min(parted), max(parted)
    where = f"{first} tokens" if first == last else f"{first} to {last} tokens (median {statistics.median(parted):g})"
    return (
        f"{same} of {len(plain)} responses are the same, token by token; the others part behind {where}. A pass of "
        "several rows may round otherwise than one of a single row, and two tokens that nearly tie then change places: "
        "samples of one policy.\n"
    )


def _verdict(speedup: Mapping[str, float]) -> str:
    if speedup["min"] > 1.0:
        return f"Drafting pays here: {speedup['median']:.2f} times as many tokens a second.\n"
    if speedup["max"] < 1.0:
        return (
            f"Drafting does not pay on this machine with this policy ({speedup['median']:.2f} times as many tokens a "
            "second): a pass of the drafter costs too much of a pass of the policy. `controller=cost_model` measures "
            "that first, and drafts where it expects to win.\n"
        )
    return "Whether drafting pays here, these rounds cannot tell.\n"
