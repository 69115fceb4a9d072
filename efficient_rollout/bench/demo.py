"""`efficient-rollout demo`: plain vLLM and self-drafting beside each other, on the same questions and seeds."""

import argparse
import itertools
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from efficient_rollout.bench.arms import PLAIN, Arm, parse_arms
from efficient_rollout.bench.report import say, summarize
from efficient_rollout.bench.rollout import ROLLOUT, BenchPlan, RoundResult, run_plan
from efficient_rollout.bench.work import Request, TaskPrompts
from efficient_rollout.config import Settings
from efficient_rollout.errors import ConfigError, EfficientRolloutError
from efficient_rollout.metrics import names
from efficient_rollout.tables import aligned, bracketed

_ROUNDS, _WARM_UP_TOKENS = 2, 8
# In float32 every response comes out the same here; in bfloat16 passes of several rows round otherwise than of one.
_DTYPES = ("float32", "bfloat16")


def add_demo_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `demo`; the parsed arguments' `run` shows both and returns the exit code."""
    parser = subparsers.add_parser(
        "demo",
        help="see plain vLLM and self-drafting beside each other",
        description="Answer a few questions with plain vLLM and with self-drafting, in turns, with the same seeds, and "
        "say how fast each was, whether the responses are the same, and whether drafting pays on this machine.",
    )
    parser.add_argument("--size", default="smollm2", help="the policy: smollm2, small or nano (default: smollm2)")
    parser.add_argument("--scheme", default="int8", help="of the drafter's weights (default: int8)")
    parser.add_argument("--draft-tokens", type=int, default=4, metavar="K", help="of every verify pass (default: 4)")
    parser.add_argument("--requests", type=int, default=4, metavar="N", help="that run at once (default: 4)")
    parser.add_argument("--tokens", type=int, default=32, metavar="T", help="of each response (default: 32)")
    parser.add_argument("--temperature", type=float, default=0.6, help="of the sampling (default: 0.6)")
    parser.add_argument("--dtype", choices=_DTYPES, default=_DTYPES[0], help="of the policy (default: float32)")
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
        arms=parse_arms(f"{PLAIN},always:{args.draft_tokens}"),
        rounds={ROLLOUT: [[Request(prompt, args.tokens) for prompt in prompts]] * _ROUNDS},
        settings=Settings.parse(
            {
                "drafter": {"scheme": args.scheme},
                "controller": {"rule": "never", "max_draft_tokens": args.draft_tokens},
            },
            where="the command line",
        ),
        temperature=args.temperature,
        dtype=args.dtype,
        first_seed=0,
        warm_up_tokens=_WARM_UP_TOKENS,
    )
    clock = _Clock()
    logging.disable(logging.WARNING)  # This command's own lines are the point, and engines set levels anew.
    try:
        rounds = run_plan(plan, clock.note, start_in_process)[ROLLOUT]
    finally:
        logging.disable(logging.NOTSET)
    if any(result.metrics.get(names.DRAFTER_FAULTS) for results in rounds.values() for result in results):
        raise EfficientRolloutError(
            "the drafter failed and was turned off, so there is nothing to compare; `efficient-rollout bench rollout` "
            "with the same policy logs why, and `efficient-rollout doctor` says what this machine lacks"
        )
    sys.stdout.write(_shown(rounds, model) + clock.said())
    return 0


class _Clock:
    """Tells a machine that was busy with something else: seconds that passed over those that this process computed."""

    def __init__(self) -> None:
        self._last = (0.0, 0.0)
        self._shares: list[float] = []

    def note(self, name: str, arm: Arm, result: RoundResult) -> None:
        """Note that a rollout has ended."""
        now = (time.perf_counter(), time.process_time())
        if self._last != (0.0, 0.0):
            self._shares.append((now[1] - self._last[1]) / (now[0] - self._last[0]))
        self._last = now
        say(f"{name}: {_name(arm.name)}, {result.tokens_per_second:.1f} tokens/s")

    def said(self) -> str:
        """Return a warning, or nothing."""
        if min(self._shares) > 0.9:
            return ""
        return "Something else kept this machine busy meanwhile: trust no figure here but the responses.\n"


def _name(arm: str) -> str:
    return "plain vLLM" if arm == PLAIN else "self-drafting"


def _shown(rounds: Mapping[str, Sequence[RoundResult]], model: str) -> str:
    arms = summarize(rounds, is_greedy=False)
    (drafting,) = (name for name in rounds if name != PLAIN)
    lines = [["", "tokens/s", "over plain", "tokens per pass of the policy"]]
    for name, arm in arms.items():
        length = statistics.fmean(result.metrics.get(names.MEAN_ACCEPTED_LENGTH, 1.0) for result in rounds[name])
        speed = f"{arm['tokens_per_second']['median']:.1f}"
        lines.append([_name(name), speed, bracketed(arm["speedup"], digits=2), f"{length:.2f}"])
    plain, ours = (rounds[name][0].token_ids for name in (PLAIN, drafting))
    return f"\n{aligned(lines)}\n{_first(plain[0], model)}{_same(plain, ours)}{_verdict(arms[drafting]['speedup'])}"


def _first(tokens: Sequence[int], model: str) -> str:
    from transformers import AutoTokenizer

    text = str(AutoTokenizer.from_pretrained(model).decode(list(tokens), skip_special_tokens=True))
    return f"The first response begins: {' '.join(text.split())[:160]}\n"


def _same(plain: Sequence[Sequence[int]], ours: Sequence[Sequence[int]]) -> str:
    parted = [place for pair in zip(plain, ours, strict=True) if (place := _first_difference(*pair)) is not None]
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


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Return how many tokens two responses have in common at their beginning; None where they are the same."""
    pairs = enumerate(itertools.zip_longest(one, other))
    return next((place for place, (mine, theirs) in pairs if mine != theirs), None)


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
