"""From rounds to numbers: medians, spread, ratios against plain decoding; as JSON and as a table."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from efficient_rollout.bench.arms import PLAIN
from efficient_rollout.bench.rollout import RoundResult

SCHEMA_VERSION = 1


def summarize(results: Mapping[str, Sequence[RoundResult]], *, is_greedy: bool) -> dict[str, dict[str, Any]]:
    """Per arm: every round, and over the rounds median, smallest and largest.

    Args:
        results: Rounds by arm, `plain` among them; rounds of equal number had the same work.
        is_greedy: Whether equal work means equal tokens.
    """
    return {name: _arm(rounds, results[PLAIN], is_greedy) for name, rounds in results.items()}


def _arm(rounds: Sequence[RoundResult], plain: Sequence[RoundResult], is_greedy: bool) -> dict[str, Any]:
    ratios = [mine.tokens_per_second / theirs.tokens_per_second for mine, theirs in zip(rounds, plain, strict=True)]
    # The same round of every arm, for rounds may differ in their work.
    shown = rounds[sorted(range(len(plain)), key=lambda i: plain[i].seconds)[(len(plain) - 1) // 2]]
    summary: dict[str, Any] = {
        "seconds": _spread([result.seconds for result in rounds]),
        "tokens_per_second": _spread([result.tokens_per_second for result in rounds]),
        "speedup": _spread(ratios),
        "rounds": [_round(result) for result in rounds],
        "active_requests": active_curve(shown.finish_seconds),
        "draft_tokens_over_time": draft_token_steps(shown),
    }
    if is_greedy:
        pairs = [
            pair for mine, theirs in zip(rounds, plain, strict=True)
            for pair in zip(mine.token_ids, theirs.token_ids, strict=True)
        ]  # fmt: skip
        summary["identical_to_plain"] = sum(mine == theirs for mine, theirs in pairs) / len(pairs)
    return summary


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


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
    """Requests that still run after each moment at which one finished."""
    times = sorted(finish_seconds)
    return {
        "seconds": [0.0, *(round(seconds, 4) for seconds in times)],
        "requests": [float(len(times) - i) for i in range(len(times) + 1)],
    }


def draft_token_steps(result: RoundResult) -> dict[str, list[float]]:
    """The chosen k over time, one entry per change."""
    seconds: list[float] = []
    chosen: list[float] = []
    for start, _, k, _ in result.ticks:
        if not chosen or chosen[-1] != k:
            seconds.append(round(start, 4))
            chosen.append(float(k))
    return {"seconds": seconds, "draft_tokens": chosen}


def table(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per arm: medians, with the spread over rounds in brackets, and who loses."""
    width = max(len("arm"), *(len(name) for name in arms))
    lines = [f"{'arm':<{width}}   seconds            tokens/s   over plain"]
    for name, arm in arms.items():
        seconds, ratio = arm["seconds"], arm["speedup"]
        lines.append(
            f"{name:<{width}}   {seconds['median']:7.2f} [{seconds['min']:.2f}, {seconds['max']:.2f}]"
            f"   {arm['tokens_per_second']['median']:8.1f}"
            f"   {ratio['median']:.3f} [{ratio['min']:.3f}, {ratio['max']:.3f}]{_verdict(name, ratio)}"
        )
    return "\n".join(lines) + "\n"


def _verdict(name: str, ratio: Mapping[str, float]) -> str:
    if name == PLAIN or ratio["median"] >= 1.0:
        return ""
    return "  slower" if ratio["max"] < 1.0 else "  slower in the median, not in every round"
