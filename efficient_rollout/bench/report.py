"""From rounds to numbers: medians, spread, ratios against plain decoding; as JSON, table and picture."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efficient_rollout.bench.rollout import PLAIN, RoundResult
from efficient_rollout.errors import ConfigError
from efficient_rollout.tables import aligned, bracketed, spread

SCHEMA_VERSION = 1


def say(line: str) -> None:
    """Write a line for whoever runs the command, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def summarize(results: Mapping[str, Sequence[RoundResult]], *, is_greedy: bool) -> dict[str, dict[str, Any]]:
    """Return per arm: every round, and over the rounds median, smallest and largest.

    Args:
        results: Rounds by arm, `plain` among them; rounds of equal number had the same work.
        is_greedy: Whether equal work means equal tokens.
    """
    return {name: _arm(rounds, results[PLAIN], is_greedy) for name, rounds in results.items()}


def _arm(rounds: Sequence[RoundResult], plain: Sequence[RoundResult], is_greedy: bool) -> dict[str, Any]:
    pairs = list(zip(rounds, plain, strict=True))
    # The same round of every arm, for rounds may differ in their work.
    shown = rounds[sorted(range(len(plain)), key=lambda i: plain[i].seconds)[(len(plain) - 1) // 2]]
    summary: dict[str, Any] = {
        "seconds": spread([result.seconds for result in rounds]),
        "tokens_per_second": spread([result.tokens_per_second for result in rounds]),
        "speedup": spread([mine.tokens_per_second / theirs.tokens_per_second for mine, theirs in pairs]),
        "rounds": [_round(result) for result in rounds],
        "active_requests": active_curve(shown.finish_seconds),
        "draft_tokens_over_time": draft_token_steps(shown),
    }
    if is_greedy:
        equal = [a == b for mine, theirs in pairs for a, b in zip(mine.token_ids, theirs.token_ids, strict=True)]
        summary["identical_to_plain"] = sum(equal) / len(equal)
    return summary


def _round(result: RoundResult) -> dict[str, Any]:
    return {
        "seconds": result.seconds,
        "num_tokens": result.num_tokens,
        "response_tokens": [len(ids) for ids in result.token_ids],
        "finish_seconds": [round(seconds, 4) for seconds in result.finish_seconds],
        "seconds_by_draft_tokens": {str(k): s for k, s in sorted(result.seconds_by_draft_tokens.items())},
        "metrics": result.metrics,
    }


def active_curve(finish_seconds: Sequence[float]) -> dict[str, list[float]]:
    """Return the requests that still run after each moment at which one finished."""
    times = [round(seconds, 4) for seconds in sorted(finish_seconds)]
    return {"seconds": [0.0, *times], "requests": [float(count) for count in range(len(times), -1, -1)]}


def draft_token_steps(result: RoundResult) -> dict[str, list[float]]:
    """Return the chosen k over time, one entry per change."""
    before = [None, *(k for _, k in result.ticks)]
    changes = [(start, k) for (start, k), last in zip(result.ticks, before, strict=False) if k != last]
    return {
        "seconds": [round(start, 4) for start, _ in changes],
        "draft_tokens": [float(k) for _, k in changes],
    }


def table(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one line per arm, and who loses."""
    lines = [["arm", "seconds", "tokens/s", "over plain", ""]]
    for name, arm in arms.items():
        seconds, speed = bracketed(arm["seconds"], digits=2), f"{arm['tokens_per_second']['median']:.1f}"
        lines.append([name, seconds, speed, bracketed(arm["speedup"], digits=3), _verdict(name, arm["speedup"])])
    return aligned(lines, left=(0, 4))


def _verdict(name: str, ratio: Mapping[str, float]) -> str:
    if name == PLAIN or ratio["median"] >= 1.0:
        return ""
    return "slower" if ratio["max"] < 1.0 else "slower in the median, not in every round"


def require_matplotlib() -> Any:
    """Return `matplotlib.pyplot`, drawing to files.

    Raises:
        ConfigError: It is not installed; it is no dependency of this package.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as error:
        raise ConfigError("--png needs matplotlib: pip install matplotlib, or leave --png out") from error
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def draw(arms: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the picture of the round in which plain decoding took its median time."""
    pyplot = require_matplotlib()
    figure, (upper, lower) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 6), layout="constrained")
    for index, (name, arm) in enumerate(arms.items()):
        color = f"C{index % 10}"
        curve, steps = arm["active_requests"], arm["draft_tokens_over_time"]
        upper.step(curve["seconds"], curve["requests"], where="post", label=name, color=color)
        if steps["seconds"]:
            seconds = [*steps["seconds"], curve["seconds"][-1]]
            chosen = [*steps["draft_tokens"], steps["draft_tokens"][-1]]
            lower.step(seconds, chosen, where="post", label=name, color=color, alpha=0.8)
    upper.set_ylabel("active requests")
    upper.legend()
    lower.set_ylabel("draft tokens per request")
    lower.set_xlabel("seconds")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
