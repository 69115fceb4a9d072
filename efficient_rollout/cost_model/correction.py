"""What this machine really took, tick by tick: multiplies the profile's seconds, heals a wrong one.

Log corrections add up over two levels: one per k (a wrong bandwidth or rate), and one per (k, octave of batch).
Each is a running mean with a bounded memory. A tick far off its prediction moves it by a bounded amount only, so a
stall or a clock jump is a blip, while a lasting change is followed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

_MEMORY_TICKS = 200.0
_LEVEL_MEMORY_TICKS = 1000.0
_CLIP_FLOOR = 0.08  # log seconds; ticks jitter by a few per cent
_PRIOR_TICKS = 1.0  # weight of "the profile is right"
_STALL_LOG = 2.0  # more than e^2 = 7.4 times off: not a decode tick, unless it keeps happening
_STALLS_BELIEVED = 5


@dataclass(slots=True)
class _Mean:
    weight: float = 0.0
    value: float = 0.0
    spread: float = 0.5

    def add(self, error: float, memory: float) -> None:
        """Move towards `value + error`, at most by the clip."""
        limit = max(_CLIP_FLOOR, 3.0 * self.spread)
        clipped = min(max(error, -limit), limit)
        self.weight = min(self.weight + 1.0, memory)
        gain = 1.0 / (self.weight + _PRIOR_TICKS)
        self.value += gain * clipped
        self.spread += max(gain, 0.02) * (min(abs(error), 2.0 * limit) - self.spread)


@dataclass(slots=True)
class OnlineCorrection:
    """Multiplicative corrections of tick seconds. Memory: one number pair per k and per (k, octave of batch)."""

    _lengths: dict[int, _Mean] = field(default_factory=dict)
    _cells: dict[tuple[int, int], _Mean] = field(default_factory=dict)
    _stalls_in_a_row: int = 0
    version: int = 0

    def observe(self, num_draft_tokens: int, batch: int, predicted_s: float, seconds: float | None) -> bool:
        """Learn from one tick without prefill.

        Args:
            num_draft_tokens: k of the tick.
            batch: Requests that decoded.
            predicted_s: Seconds the uncorrected profile predicts.
            seconds: Measured seconds; None, negative and non-finite values are ignored.

        Returns:
            Whether the tick was used.
        """
        if seconds is None or not math.isfinite(seconds) or seconds <= 0.0 or batch < 1:
            return False
        error = math.log(seconds / predicted_s) - self.log_factor(num_draft_tokens, batch)
        if abs(error) > _STALL_LOG:
            self._stalls_in_a_row += 1
            if self._stalls_in_a_row < _STALLS_BELIEVED:
                return False
        else:
            self._stalls_in_a_row = 0
        self.version += 1
        level = self._lengths.setdefault(num_draft_tokens, _Mean())
        cell = self._cells.setdefault((num_draft_tokens, batch.bit_length()), _Mean())
        before = level.value
        level.add(error, _LEVEL_MEMORY_TICKS)
        cell.add(error - (level.value - before), _MEMORY_TICKS)
        return True

    def log_factor(self, num_draft_tokens: int, batch: int) -> float:
        """Log of measured over predicted seconds.

        A k that was never timed takes the correction of its nearest timed neighbours of the same kind; if none of
        its kind was timed, that of the other kind (a machine that is slower altogether).
        """
        cell = self._cells.get((num_draft_tokens, batch.bit_length()))
        level = self._lengths.get(num_draft_tokens)
        if level is not None:
            return level.value + (cell.value if cell is not None else 0.0)
        return self._borrowed(num_draft_tokens, batch)

    def num_ticks(self, num_draft_tokens: int, batch: int) -> float:
        """Remembered ticks at this k and octave of batch."""
        cell = self._cells.get((num_draft_tokens, batch.bit_length()))
        return 0.0 if cell is None else cell.weight

    def _borrowed(self, num_draft_tokens: int, batch: int) -> float:
        total, weight = 0.0, 0.0
        for k, level in self._neighbours(num_draft_tokens):
            cell = self._cells.get((k, batch.bit_length()))
            share = level.weight / (1.0 + abs(k - num_draft_tokens)) ** 2
            total += share * (level.value + (cell.value if cell is not None else 0.0))
            weight += share
        return total / (weight + 2.0) if weight else 0.0

    def _neighbours(self, num_draft_tokens: int) -> Iterator[tuple[int, _Mean]]:
        timed = [(k, level) for k, level in self._lengths.items() if (k > 0) == (num_draft_tokens > 0)]
        yield from timed or self._lengths.items()
