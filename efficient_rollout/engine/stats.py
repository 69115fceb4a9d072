"""Fetch the statistics of one engine, or of the engines behind one server."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from efficient_rollout.metrics.rollout_stats import RolloutStats

RPC_NAME = "take_rollout_stats"

# Statistics reach the worker with a later tick. An engine runs one more, empty tick after its last
# request, but may answer a call first; between two calls that follow one another it always runs it.
NUM_CALLS = 2

# One call's answers of an engine, by rank.
Answers = Sequence[dict[str, Any]]


def merge_calls(answers: Sequence[Answers]) -> RolloutStats:
    """One engine's statistics from the answers to `NUM_CALLS` consecutive calls of `RPC_NAME`, oldest first."""
    first, *rest = (RolloutStats.of_ranks([RolloutStats.from_dict(rank) for rank in ranks]) for ranks in answers)
    merged = RolloutStats.merge([first, *(replace(part, num_engines=0) for part in rest)])
    merged.num_stale_drafters = min(1, merged.num_stale_drafters)
    return merged


def take_rollout_stats(collective_rpc: Callable[[str], list[dict[str, Any]]]) -> RolloutStats:
    """Statistics since the last call.

    Args:
        collective_rpc: `LLM.collective_rpc` of an engine started with `engine_args`.
    """
    return merge_calls([collective_rpc(RPC_NAME) for _ in range(NUM_CALLS)])


async def take_rollout_stats_by_engine(server: Any) -> list[RolloutStats]:
    """Statistics since the last call, of each data-parallel engine behind an `AsyncLLM`."""
    calls = [await call_every_engine(server, RPC_NAME) for _ in range(NUM_CALLS)]
    return [merge_calls(of_engine) for of_engine in zip(*calls, strict=True)]


async def take_rollout_stats_behind(server: Any) -> RolloutStats:
    """Statistics since the last call, of all data-parallel engines behind an `AsyncLLM` together."""
    return RolloutStats.merge(await take_rollout_stats_by_engine(server))


async def rollout_totals_by_engine(server: Any) -> dict[int, RolloutStats]:
    """Statistics of each engine behind an `AsyncLLM` since it started, by the number that vLLM labels it with.

    Takes nothing. Of a running engine the last 32 ticks may be missing.
    """
    answers = await call_every_engine(server, "rollout_totals")
    engines = [RolloutStats.of_ranks([RolloutStats.from_dict(rank) for rank in ranks]) for ranks in answers]
    return dict(zip(server.engine_core.engine_ranks_managed, engines, strict=True))


async def call_every_engine(server: Any, method: str) -> list[list[Any]]:
    """Call a method of every worker behind an `AsyncLLM`; answers by engine, then by rank.

    vLLM's own `collective_rpc` calls them all too, and returns what the first engine's workers answer.
    """
    client = server.engine_core
    return [
        await client._call_utility_async("collective_rpc", method, None, (), None, engine=engine)
        for engine in client.core_engines
    ]
