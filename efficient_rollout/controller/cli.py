"""`efficient-rollout explain`: what a profile predicts for each k, and what would be chosen."""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from efficient_rollout.cost_model.latency import LatencyModel
from efficient_rollout.cost_model.profile import load_profile
from efficient_rollout.cost_model.speedup import expected_tokens, speedup
from efficient_rollout.errors import ConfigError
from efficient_rollout.tables import aligned

_DEFAULT_CHOICES = "0,1,2,3,4,5,6,7,8"
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Holds predictions for one (batch, context, acceptance); every mapping is by k.

    Attributes:
        choice: The k of the highest speed-up; the smallest such k on a tie.
        speedup: Tokens per second over plain decoding.
        tick_seconds: Seconds of a whole tick.
        tokens: Expected tokens per request and tick.
    """

    choice: int
    speedup: dict[int, float]
    tick_seconds: dict[int, float]
    tokens: dict[int, float]

    def to_dict(self) -> dict[str, object]:
        """Return `{"choice": 3, "speedup": {"0": 1.0, "3": 1.31}}`."""
        return {"choice": self.choice, "speedup": {str(k): gain for k, gain in self.speedup.items()}}


def explain(
    model: LatencyModel, batch: int, context_tokens: int, acceptance: float, choices: Sequence[int]
) -> Explanation:
    """Predict every choice of k.

    Raises:
        ConfigError: an argument is out of range, or there is no choice.
    """
    if batch < 1 or context_tokens < 1:
        raise ConfigError(f"batch is {batch} and context {context_tokens}; both must be at least 1")
    if not choices or min(choices) < 0:
        raise ConfigError(f"choices are {list(choices)}; give one or more numbers of draft tokens, each at least 0")
    by_length = model.tick_seconds(max(choices), batch, np.array([float(context_tokens)]))[:, 0]
    seconds = {k: float(by_length[k]) for k in sorted(set(choices))}
    tokens = {k: expected_tokens(acceptance, k) for k in seconds}
    gains = {k: speedup(tokens[k], float(by_length[0]), seconds[k]) for k in seconds}
    return Explanation(max(gains, key=gains.__getitem__), gains, seconds, tokens)


def add_explain_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `explain`; the parsed arguments carry `run`."""
    parser = subparsers.add_parser(
        "explain",
        help="predicted speed-up of each number of draft tokens",
        description="--batch, --context and --acceptance take one value or a comma-separated list. Lists of equal"
        " length are read element by element, and a single value goes with every element; lists of different lengths"
        " give every combination, acceptance changing fastest and batch slowest.",
    )
    parser.add_argument("--profile", type=Path, required=True, help="latency profile")
    parser.add_argument("--batch", required=True, help="running sequences")
    parser.add_argument("--context", required=True, help="mean context tokens per sequence")
    parser.add_argument("--acceptance", required=True, help="per-token acceptance, 0 to 1")
    parser.add_argument("--choices", default=_DEFAULT_CHOICES, help="numbers of draft tokens to compare")
    parser.add_argument("--json", action="store_true", help="print JSON: one object, or a list for lists")
    parser.set_defaults(run=run_explain)


def run_explain(args: argparse.Namespace) -> int:
    """Print the prediction of every requested case."""
    model = load_profile(args.profile).model
    choices = _numbers("--choices", args.choices, int)
    batches = _numbers("--batch", args.batch, int)
    contexts = _numbers("--context", args.context, int)
    acceptances = _numbers("--acceptance", args.acceptance, float)
    cases = _cases(batches, contexts, acceptances)
    explanations = [explain(model, *case, choices) for case in cases]
    if args.json:
        is_list = any("," in text for text in (args.batch, args.context, args.acceptance))
        data = [e.to_dict() for e in explanations] if is_list else explanations[0].to_dict()
        sys.stdout.write(json.dumps(data) + "\n")
    else:
        for case, explanation in zip(cases, explanations, strict=True):
            sys.stdout.write(_text(case, explanation))
    return 0


def _cases(
    batches: Sequence[int], contexts: Sequence[int], acceptances: Sequence[float]
) -> list[tuple[int, int, float]]:
    longest = max(len(batches), len(contexts), len(acceptances))
    if any(len(values) not in (1, longest) for values in (batches, contexts, acceptances)):
        return list(itertools.product(batches, contexts, acceptances))

    def stretched(values: Sequence[Number]) -> list[Number]:
        return list(values) * longest if len(values) == 1 else list(values)

    return list(zip(stretched(batches), stretched(contexts), stretched(acceptances), strict=True))


def _numbers(option: str, text: str, parse: Callable[[str], Number]) -> list[Number]:
    try:
        return [parse(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} must be numbers separated by commas, got {text!r}") from error


def _text(case: tuple[int, int, float], explanation: Explanation) -> str:
    batch, context, acceptance = case
    lines = [["k", "tick ms", "tokens", "speed-up", ""]]
    for k, gain in explanation.speedup.items():
        mark = "<- choice" if k == explanation.choice else ""
        seconds, tokens = explanation.tick_seconds[k], explanation.tokens[k]
        lines.append([str(k), f"{seconds * 1e3:.2f}", f"{tokens:.2f}", f"{gain:.3f}", mark])
    return f"batch {batch}, context {context} tokens, acceptance {acceptance}\n{aligned(lines, left=(4,))}"
