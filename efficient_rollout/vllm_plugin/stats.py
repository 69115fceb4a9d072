"""Fetch the statistics of one engine."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from efficient_rollout.metrics.rollout_stats import RolloutStats

RPC_NAME = "take_rollout_stats"

# Statistics reach the worker with a later tick. An engine runs one more, empty tick after its last
# request, but may answer a call first; between two calls that follow one another it always runs it.
NUM_CALLS = 2


def merge_calls(answers: list[dict[str, Any]]) -> RolloutStats:
    """One engine's statistics from the answers to `NUM_CALLS` consecutive calls of `RPC_NAME`, oldest first."""
    first, *rest = (RolloutStats.from_dict(answer) for answer in answers)
    merged = RolloutStats.merge([first, *(replace(part, num_engines=0) for part in rest)])
    merged.num_stale_drafters = min(1, merged.num_stale_drafters)
    return merged


def take_rollout_stats(collective_rpc: Callable[[str], list[dict[str, Any]]]) -> RolloutStats:
    """Statistics since the last call.

    Args:
        collective_rpc: `LLM.collective_rpc` of an engine started with `engine_args`.
    """
    return merge_calls([collective_rpc(RPC_NAME)[0] for _ in range(NUM_CALLS)])
