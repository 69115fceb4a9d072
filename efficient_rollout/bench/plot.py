"""The picture of a comparison: requests that still run, and the draft tokens chosen, over time."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efficient_rollout.errors import ConfigError


def require_matplotlib() -> Any:
    """`matplotlib.pyplot`, drawing to files.

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
