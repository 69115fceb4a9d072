"""Seconds that a device spends, without waiting for it."""

import time
from types import TracebackType
from typing import Self

import torch

# So many timings are kept before those that have ended are summed.
_MOST_PENDING = 256


class Stopwatch:
    """Sums the time between entering and leaving; a GPU's by its own events.

    Args:
        device: Whose time it is.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        """From zero."""
        self._seconds = 0.0
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> Self:
        if self._is_gpu:
            self._start = torch.cuda.Event(enable_timing=True)
            self._start.record()
        else:
            self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_gpu:
            self._seconds += time.perf_counter() - self._started
            return
        end = torch.cuda.Event(enable_timing=True)
        end.record()
        self._pending.append((self._start, end))
        if len(self._pending) >= _MOST_PENDING:
            self._sum(self._pending[: _MOST_PENDING // 2])

    def seconds(self) -> float:
        """All so far; waits for what the device has not done yet."""
        self._sum(list(self._pending))
        return self._seconds

    def _sum(self, spans: list[tuple[torch.cuda.Event, torch.cuda.Event]]) -> None:
        for start, end in spans:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000
        self._pending = self._pending[len(spans) :]
