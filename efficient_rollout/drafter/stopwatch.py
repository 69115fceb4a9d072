"""Seconds that a device spends, without waiting for it."""

import time
from typing import Self

import torch

# So many timings are kept before those that have ended are summed.
_MOST_PENDING = 256


class Stopwatch:
    """Sums the time between entering and leaving; a GPU's is measured by its own events.

    Attributes:
        num_laps: How often it was left; a lap's number is how often it had been left before.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self.num_laps = 0
        self._seconds = 0.0
        self._pending: list[tuple[int, torch.cuda.Event, torch.cuda.Event]] = []
        self._laps: dict[int, float] | None = None

    def reset(self) -> None:
        """Start again from zero; laps that are kept stay."""
        if self._laps is not None:
            self._sum(self._pending)
        self._seconds, self._pending = 0.0, []

    def keep_laps(self) -> None:
        """Keep every lap's own seconds from now on, until they are taken."""
        self._laps = {}

    def take_laps(self) -> dict[int, float]:
        """Return seconds by a lap's number, since the last call; it waits as `seconds` does."""
        self.seconds()
        laps, self._laps = self._laps or {}, {}
        return laps

    def __enter__(self) -> Self:
        if self._is_gpu:
            self._start = torch.cuda.Event(enable_timing=True)
            self._start.record()
        else:
            self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        number, self.num_laps = self.num_laps, self.num_laps + 1
        if not self._is_gpu:
            self._add(number, time.perf_counter() - self._started)
            return
        end = torch.cuda.Event(enable_timing=True)
        end.record()
        self._pending.append((number, self._start, end))
        if len(self._pending) >= _MOST_PENDING:
            self._sum(self._pending[: _MOST_PENDING // 2])

    def seconds(self) -> float:
        """Return all seconds so far; it waits for what the device has not done yet."""
        self._sum(self._pending)
        return self._seconds

    def _sum(self, spans: list[tuple[int, torch.cuda.Event, torch.cuda.Event]]) -> None:
        for number, start, end in spans:
            end.synchronize()
            self._add(number, start.elapsed_time(end) / 1000)
        self._pending = self._pending[len(spans) :]

    def _add(self, number: int, seconds: float) -> None:
        self._seconds += seconds
        if self._laps is not None:
            self._laps[number] = seconds
