"""What this machine really took, tick by tick: multiplies the profile's seconds, heals a wrong one.

Per k and octave of batch: a running mean of log(measured / predicted), its memory bounded. What is not timed yet takes
the means of the octaves beside it, the less the further they lie: one sequence says little about thirty. A tick far off
its prediction moves a mean by a bounded amount only, so that a stall or a clock jump is a blip, while a lasting change
is followed.
"""

import math
from dataclasses import dataclass, field

_MEMORY_TICKS = 200.0
# What other octaves say of one: a share of each one's ticks per octave of distance, so many ticks of each at most, and
# altogether the weight of so many ticks of its own.
_OCTAVE_DECAY, _OCTAVE_TICKS, _OCTAVES_WEIGHT = 0.5, 16.0, 4.0
_CLIP_FLOOR = 0.08  # log seconds; ticks jitter by a few per cent
_PRIOR_TICKS = 1.0  # weight of "the profile is right"
_STALL_LOG = 2.0  # more than e^2 = 7.4 times off: not a decode tick, unless it keeps happening
_STALLS_BELIEVED = 5


@dataclass(slots=True)
class _Mean:
    weight: float = 0.0
    value: float = 0.0
    spread: float = 0.5

    def add(self, error: float) -> None:
        """Move towards `value + error`, at most by the clip."""
        limit = max(_CLIP_FLOOR, 3.0 * self.spread)
        clipped = min(max(error, -limit), limit)
        self.weight = min(self.weight + 1.0, _MEMORY_TICKS)
        gain = 1.0 / self.weight
        self.value += gain * clipped
        self.spread += max(0.5 * gain, 0.02) * (min(abs(error), 2.0 * limit) - self.spread)


@dataclass(slots=True)
class OnlineCorrection:
    """Multiplicative corrections of tick seconds. Memory: a few numbers per k and octave of batch."""

    _cells: dict[int, dict[int, _Mean]] = field(default_factory=dict)
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
        ratio = math.log(seconds / predicted_s)
        if abs(ratio - self.log_factor(num_draft_tokens, batch)) > _STALL_LOG:
            self._stalls_in_a_row += 1
            if self._stalls_in_a_row < _STALLS_BELIEVED:
                return False
        else:
            self._stalls_in_a_row = 0
        self.version += 1
        cell = self._cells.setdefault(num_draft_tokens, {}).get(batch.bit_length())
        if cell is None:
            # Until it has ticks of its own, an octave stands where its neighbours do.
            cell = _Mean(value=self.log_factor(num_draft_tokens, batch))
            self._cells[num_draft_tokens][batch.bit_length()] = cell
        cell.add(ratio - cell.value)
        return True

    def log_factor(self, num_draft_tokens: int, batch: int) -> float:
        """Log of measured over predicted seconds.

        A k that was never timed takes the corrections of its nearest timed neighbours of the same kind; if none of
        its kind was timed, those of the other kind (a machine that is slower altogether).
        """
        total, weight = self._near(num_draft_tokens, batch)
        if weight == 0.0:
            for k in self._neighbours(num_draft_tokens):
                closeness = 1.0 / (1.0 + abs(k - num_draft_tokens)) ** 2
                of_k = self._near(k, batch)
                total, weight = total + closeness * of_k[0], weight + closeness * of_k[1]
        return total / (weight + _PRIOR_TICKS)

    def num_ticks(self, num_draft_tokens: int, batch: int) -> float:
        """Remembered ticks at this k and octave of batch."""
        cell = self._cells.get(num_draft_tokens, {}).get(batch.bit_length())
        return 0.0 if cell is None else cell.weight

    def _near(self, num_draft_tokens: int, batch: int) -> tuple[float, float]:
        """Weighted sum and weight of the means of one k, by how near their octaves are."""
        own = self._cells.get(num_draft_tokens, {}).get(batch.bit_length(), _Mean())
        total, weight = 0.0, 0.0
        for octave, cell in self._cells.get(num_draft_tokens, {}).items():
            if cell is not own:
                share = min(cell.weight, _OCTAVE_TICKS) * _OCTAVE_DECAY ** abs(octave - batch.bit_length())
                total, weight = total + share * cell.value, weight + share
        scale = min(1.0, _OCTAVES_WEIGHT / weight) if weight else 0.0
        return own.weight * own.value + scale * total, own.weight + scale * weight

    def _neighbours(self, num_draft_tokens: int) -> list[int]:
        timed = [k for k in self._cells if (k > 0) == (num_draft_tokens > 0)]
        return timed or list(self._cells)
