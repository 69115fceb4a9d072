"""Fetch the statistics of one engine, or of the engines behind one server, with the times of a rollout."""

import time
from collections.abc import Callable
from typing import Any

from vllm.tracing import instrument_manual

from efficient_rollout.metrics import timeline
from efficient_rollout.metrics.rollout_record import Segment
from efficient_rollout.metrics.rollout_stats import RolloutStats


def take_rollout_stats(collective_rpc: Callable[[str], list[dict[str, Any]]]) -> RolloutStats:
    """Take statistics since the last call, by `LLM.collective_rpc` of an engine started with `engine_args`."""
    return _of_engine(collective_rpc("take_rollout_stats"))


async def take_rollout_stats_behind(server: Any) -> RolloutStats:
    """Take statistics since the last call, of all data-parallel engines behind an `AsyncLLM` together."""
    return RolloutStats.merge(await _of_engines(server, "take_rollout_stats"))


async def rollout_totals_by_engine(server: Any) -> dict[int, RolloutStats]:
    """Read the statistics of each engine behind an `AsyncLLM` since it started, by the number vLLM labels it with."""
    engines = await _of_engines(server, "rollout_totals")
    return dict(zip(server.engine_core.engine_ranks_managed, engines, strict=True))


async def _of_engines(server: Any, method: str) -> list[RolloutStats]:
    return [_of_engine(ranks) for ranks in await call_every_engine(server, method)]


def _of_engine(ranks: list[dict[str, Any]]) -> RolloutStats:
    return RolloutStats.of_ranks([RolloutStats.from_dict(rank) for rank in ranks])


async def call_every_engine(server: Any, method: str, *args: Any) -> list[list[Any]]:
    """Call a method of every worker behind an `AsyncLLM`; answers by engine, then by rank.

    vLLM's own `collective_rpc` calls them all too, and returns what the first engine's workers answer.
    """
    client = server.engine_core
    return [
        await client._call_utility_async("collective_rpc", method, None, args, None, engine=engine)
        for engine in client.core_engines
    ]


class SegmentRecorder:
    """Keeps the record of one `AsyncLLM`, in the process that owns it."""

    _first_request_time: float | None = None
    _last_response_time: float | None = None

    def __init__(self) -> None:
        # One list a weight sync, one segment in it an engine.
        self._closed: list[list[Segment]] = []

    def request_came(self) -> None:
        """Note that a request goes to the engine now."""
        if self._first_request_time is None:
            self._first_request_time = time.time()

    def response_went(self) -> None:
        """Note that a response is complete."""
        self._last_response_time = time.time()

    async def close(self, engine: Any) -> None:
        """End the running segment: a weight sync begins."""
        self._closed.append(await self._running(engine))

    async def take(self, engine: Any) -> list[list[dict[str, Any]]]:
        """Return each engine's segments since the last call, as plain types: one a weight sync, one since the last."""
        segments = [*self._closed, await self._running(engine)]
        self._closed = []
        return [[segment.to_dict() for segment in of_engine] for of_engine in zip(*segments, strict=True)]

    async def _running(self, engine: Any) -> list[Segment]:
        by_engine = await _of_engines(engine, "take_rollout_stats")
        segments = [Segment(stats, self._first_request_time, self._last_response_time) for stats in by_engine]
        _trace(Segment.merge(segments))
        self._first_request_time = self._last_response_time = None
        return segments


def _trace(rollout: Segment) -> None:
    """Leave spans of a rollout and its tail, where vLLM was told where to send spans (`otlp_traces_endpoint`)."""
    start, end = rollout.first_request_time, rollout.last_response_time
    if start is None or end is None:
        return
    stats = rollout.stats
    counts = {
        "engines": stats.num_engines,
        "generated_tokens": stats.num_generated_tokens,
        "accepted_tokens": stats.num_accepted_tokens,
    }
    instrument_manual("efficient_rollout.rollout", int(start * 1e9), int(end * 1e9), counts)
    tail = max((timeline.tail_seconds(bins) for bins in stats.timelines.values()), default=0.0)
    if tail > 0.0:
        instrument_manual("efficient_rollout.tail", int((end - tail) * 1e9), int(end * 1e9))
