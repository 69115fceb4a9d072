"""The ways new weights come into an engine, and what tells one policy in it from another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_support

PROMPTS = [[3 + i, 40 + i, 9] for i in range(6)]


def through_buckets(engine: Any, path: Path) -> None:
    """As a framework's worker extension does."""
    engine.collective_rpc("sync_from", args=(str(path),))


def through_reload(engine: Any, path: Path) -> None:
    """vLLM's own reload of a checkpoint."""
    engine.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})


def through_transfer(engine: Any, path: Path) -> None:
    """vLLM's native weight transfer, in two chunks."""
    engine.init_weight_transfer_engine({"init_info": {}})
    engine.start_weight_update()
    for start, stop in [(0, 7), (7, None)]:
        send_chunk(engine, path, start, stop)
    engine.finish_weight_update()


def send_chunk(engine: Any, path: Path, start: int, stop: int | None) -> None:
    """One chunk of a native weight transfer."""
    engine.update_weights({"update_info": {"path": str(path), "start": start, "stop": stop}})


DOORS: dict[str, Callable[[Any, Path], None]] = {
    "buckets": through_buckets,
    "reload_weights": through_reload,
    "weight transfer": through_transfer,
}


def sync(engine: Any, path: Path, door: Callable[[Any, Path], None] = through_buckets) -> None:
    """A weight sync, and what follows it: KV of the old policy is worthless."""
    door(engine, path)
    engine.reset_prefix_cache()


def logprobs(engine: Any) -> list[list[list[tuple[int, float]]]]:
    """The four likeliest tokens with their log-probabilities at every position of greedy completions."""
    outputs = engine_support.generate(engine, PROMPTS, max_tokens=24, logprobs=4)
    return [
        [sorted((token, entry.logprob) for token, entry in position.items()) for position in output.logprobs]
        for (output,) in outputs
    ]


def fingerprints(engine: Any) -> dict[str, str]:
    """Of the drafter's layers."""
    return engine.collective_rpc("drafter_fingerprints")[0]


def status(engine: Any) -> dict[str, Any]:
    """Of the worker."""
    return engine.collective_rpc("plugin_status")[0]
