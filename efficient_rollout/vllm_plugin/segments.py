"""What the engines behind one server did, cut where a weight sync begins."""

import time
from typing import Any

from efficient_rollout.metrics.rollout_record import Segment
from efficient_rollout.vllm_plugin.stats import take_rollout_stats_behind


class SegmentRecorder:
    """The record of one `AsyncLLM`, kept by the process that owns it."""

    def __init__(self) -> None:
        self._closed: list[Segment] = []
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

    async def take(self, engine: Any) -> list[dict[str, Any]]:
        """As plain types: what was done since the last call, a segment a weight sync and one since the last of them."""
        segments = [*self._closed, await self._running(engine)]
        self._closed = []
        return [segment.to_dict() for segment in segments]

    async def _running(self, engine: Any) -> Segment:
        segment = Segment(await take_rollout_stats_behind(engine), self._first_request_time, self._last_response_time)
        self._first_request_time = self._last_response_time = None
        return segment
