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

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Holds what a profile predicts for one number of draft tokens."""

    num_draft_tokens: int
    tick_seconds: float
    tokens: float  # per request and tick
    speedup: float  # of tokens per second, over plain decoding


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
    parser.add_argument("--choices", default="0,1,2,3,4,5,6,7,8", help="numbers of draft tokens to compare")
    parser.add_argument("--json", action="store_true", help="print JSON: one object, or a list for lists")
    parser.set_defaults(run=run_explain)


def run_explain(args: argparse.Namespace) -> int:
    """Print the prediction of every requested case.

    Raises:
        ConfigError: An option is malformed or out of range.
    """
    model = load_profile(args.profile).model
    choices = _numbers("--choices", args.choices, int)
    batches = _numbers("--batch", args.batch, int)
    contexts = _numbers("--context", args.context, int)
    acceptances = _numbers("--acceptance", args.acceptance, float)
    cases = _cases(batches, contexts, acceptances)
    predicted = [explain(model, *case, choices) for case in cases]
    if args.json:
        data = [
            {"choice": best_of(ks).num_draft_tokens, "speedup": {str(one.num_draft_tokens): one.speedup for one in ks}}
            for ks in predicted
        ]
        is_list = any("," in text for text in (args.batch, args.context, args.acceptance))
        sys.stdout.write(json.dumps(data if is_list else data[0]) + "\n")
        return 0
    for (batch, context, acceptance), ks in zip(cases, predicted, strict=True):
        lines = [["k", "tick ms", "tokens", "speed-up", ""]]
        for one in ks:
            mark = "<- choice" if one is best_of(ks) else ""
            lines.append(
                [
                    str(one.num_draft_tokens),
                    f"{one.tick_seconds * 1e3:.2f}",
                    f"{one.tokens:.2f}",
                    f"{one.speedup:.3f}",
                    mark,
                ]
            )
        sys.stdout.write(
            f"batch {batch}, context {context} tokens, acceptance {acceptance}\n{aligned(lines, left=(4,))}"
        )
    return 0


def explain(
    model: LatencyModel, batch: int, context_tokens: int, acceptance: float, choices: Sequence[int]
) -> list[Prediction]:
    """Predict every choice of k, in ascending order.

    Raises:
        ConfigError: an argument is out of range, or there is no choice.
    """
    if batch < 1 or context_tokens < 1:
        raise ConfigError(f"batch is {batch} and context {context_tokens}; both must be at least 1")
    if not choices or min(choices) < 0:
        raise ConfigError(f"choices are {list(choices)}; give numbers of draft tokens, each at least 0")
    seconds = model.tick_seconds(max(choices), batch, np.array([float(context_tokens)]))[:, 0].tolist()
    tokens = {k: expected_tokens(acceptance, k) for k in sorted(set(choices))}
    return [Prediction(k, seconds[k], tokens[k], speedup(tokens[k], seconds[0], seconds[k])) for k in tokens]


def best_of(predictions: Sequence[Prediction]) -> Prediction:
    """Return that of the highest speed-up; of equal ones the first."""
    return max(predictions, key=lambda one: one.speedup)


def _cases(
    batches: Sequence[int], contexts: Sequence[int], acceptances: Sequence[float]
) -> list[tuple[int, int, float]]:
    longest = max(len(batches), len(contexts), len(acceptances))
    if any(len(values) not in (1, longest) for values in (batches, contexts, acceptances)):
        return list(itertools.product(batches, contexts, acceptances))
    # A single value goes with every element.
    columns = (itertools.islice(itertools.cycle(values), longest) for values in (batches, contexts, acceptances))
    return list(zip(*columns, strict=True))


def _numbers(option: str, text: str, parse: Callable[[str], Number]) -> list[Number]:
    try:
        return [parse(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} must be numbers separated by commas, got {text!r}") from error
