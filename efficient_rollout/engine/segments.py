"""What the engines behind one server did, cut where a weight sync begins."""

import time
from typing import Any

from efficient_rollout.engine.stats import take_rollout_stats_by_engine
from efficient_rollout.metrics.rollout_record import Segment


class SegmentRecorder:
    """The record of one `AsyncLLM`, kept by the process that owns it."""

    def __init__(self) -> None:
        # One list a weight sync, one segment in it an engine.
        self._closed: list[list[Segment]] = []
        self._first_request_time: float | None = None
        self._last_response_time: float | None = None

    def request_came(self) -> None:
        """A request goes to the engine now."""
        if self._first_request_time is None:
            self._first_request_time = time.time()

    def response_went(self) -> None:
        """A response is complete."""
        self._last_response_time = time.time()

    async def close(self, engine: Any) -> None:
        """End the running segment: a weight sync begins."""
        self._closed.append(await self._running(engine))

    async def take(self, engine: Any) -> list[list[dict[str, Any]]]:
        """As plain types, by engine: its segments since the last call, one a weight sync and one since the last."""
        segments = [*self._closed, await self._running(engine)]
        self._closed = []
        return [[segment.to_dict() for segment in of_engine] for of_engine in zip(*segments, strict=True)]

    async def _running(self, engine: Any) -> list[Segment]:
        by_engine = await take_rollout_stats_by_engine(engine)
        segments = [Segment(stats, self._first_request_time, self._last_response_time) for stats in by_engine]
        self._first_request_time = self._last_response_time = None
        return segments
