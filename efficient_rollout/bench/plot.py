"""The picture of a comparison: requests that still run, and the draft tokens chosen, over time."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efficient_rollout.errors import ConfigError


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


def draw_parts(drafting: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the picture of where ticks go: a bar for each drafter, batch and number of draft tokens.

    Args:
        drafting: Rows of `bench drafter`, with `part_seconds`.
        path: A file whose ending matplotlib knows.
    """
    pyplot = require_matplotlib()
    labels = [f"{row['drafter']}, batch {row['batch']}, k = {row['draft_tokens']}" for row in drafting]
    parts = dict.fromkeys(part for row in drafting for part in row["part_seconds"])
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.3 * len(labels)), layout="constrained")
    left = [0.0] * len(labels)
    for part in parts:
        widths = [1e3 * row["part_seconds"].get(part, 0.0) for row in drafting]
        axes.barh(labels, widths, left=left, label=part.replace("_", " "))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of a tick")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
