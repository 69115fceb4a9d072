"""What each response of an engine did over time, in few numbers however long it is and however many there are.

A lane is a list of numbers, so that it travels as JSON: `[start_s, end_s, num_tokens]`, from the tick that its request
was first scheduled in to the one that it ended in, by the clock of the engine's timeline; and behind them, five for
each part in which it drafted: `start_s, end_s, num_passes, num_drafted, num_accepted`. Between parts it was prefilled,
or decoded plainly. Nothing in it names the request.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

START, END, NUM_TOKENS, FIRST_PART = 0, 1, 2, 3
PASSES, DRAFTED, ACCEPTED, PART = 2, 3, 4, 5
# Parts of a lane at most. What fits into a share of the lane's time so far is one part, of whatever draft lengths.
MAX_PARTS, _SHARES = 40, 12
# Lanes of one engine between two reports: all of them up to twice as many.
MAX_LANES = 512

Lane = list[float]


@dataclass(slots=True)
class _Open:
    start_s: float
    parts: list[list[float]] = field(default_factory=list)


class LaneRecorder:
    """Records the lanes of one engine. A tick in which nothing is drafted costs nothing for its requests.

    Args:
        clock: Seconds that never run backwards, as the timeline's.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._open: dict[str, _Open] = {}
        self._before = self._now = clock()

    def begin(self, request_ids: Iterable[str]) -> None:
        """Begin the lanes of requests that are scheduled now; one that was preempted goes on with its own."""
        now = self._clock()
        for request_id in request_ids:
            self._open.setdefault(request_id, _Open(now))

    def end_tick(self) -> None:
        """End a tick; what is told from here on happened in it."""
        self._before, self._now = self._now, self._clock()

    def add_pass(self, request_id: str, num_drafted: int, num_accepted: int) -> None:
        """Add a request's verify pass, of at least one draft token; those that it gained are accepted."""
        lane = self._open.get(request_id)
        if lane is None:
            return
        parts, now = lane.parts, self._now
        if parts:
            last = parts[-1]
            is_same = last[END] == self._before and last[DRAFTED] == num_drafted * last[PASSES]
            if is_same or (now - last[START]) * _SHARES <= now - lane.start_s:
                last[END] = now
                last[PASSES] += 1
                last[DRAFTED] += num_drafted
                last[ACCEPTED] += num_accepted
                return
        parts.append([max(self._before, lane.start_s), now, 1, num_drafted, num_accepted])
        if len(parts) > MAX_PARTS:
            lane.parts = _thinned(parts, share=(now - lane.start_s) / _SHARES)

    def end(self, request_id: str, num_tokens: int) -> Lane | None:
        """End a request's lane with the newest tick, and return it; None where it was never scheduled."""
        lane = self._open.pop(request_id, None)
        if lane is None:
            return None
        # A request that was scheduled and aborted before its tick ended has a lane without length.
        end_s = max(self._now, lane.start_s)
        return [lane.start_s, end_s, num_tokens, *(value for part in lane.parts for value in part)]


def parts_of(lane: Lane) -> Iterator[list[float]]:
    """Yield the parts in which a response drafted, `PART` numbers each."""
    for start in range(FIRST_PART, len(lane), PART):
        yield lane[start : start + PART]


def add_lane(lanes: list[Lane], lane: Lane) -> None:
    """Append one, in place."""
    lanes.append(lane)
    if len(lanes) > 2 * MAX_LANES:
        lanes[:] = selected(lanes, MAX_LANES)


def joined(parts: Iterable[Sequence[Lane]]) -> list[Lane]:
    """Return one engine's lanes from parts of them; the parts stay as they are."""
    lanes = [lane for part in parts for lane in part]
    return selected(lanes, MAX_LANES) if len(lanes) > 2 * MAX_LANES else lanes


def selected(lanes: Iterable[Lane], limit: int) -> list[Lane]:
    """Return as many lanes as `limit` at most, those that ended last first.

    Half of them are the last to end, which the others waited for; the rest stand evenly for all others.
    """
    ordered = sorted(lanes, key=lambda lane: -lane[END])
    if len(ordered) <= limit:
        return ordered
    most = limit // 2
    return ordered[:most] + ordered[most :: -(-(len(ordered) - most) // (limit - most))]


def moved(lane: Lane, zero_s: float) -> Lane:
    """Return a lane in seconds since another zero, to a tenth of a millisecond: a page shows no more."""
    found = [_rounded(lane[START] - zero_s), _rounded(lane[END] - zero_s), lane[NUM_TOKENS]]
    for start_s, end_s, *counts in parts_of(lane):
        found += [_rounded(start_s - zero_s), _rounded(end_s - zero_s), *counts]
    return found


def is_lane(one: Any) -> bool:
    """Tell whether a value from a file is a lane."""
    is_long = isinstance(one, list) and len(one) >= FIRST_PART and (len(one) - FIRST_PART) % PART == 0
    return is_long and all(type(value) in (int, float) and 0.0 <= value < 1e9 for value in one)


def _rounded(seconds: float) -> float:
    return round(max(0.0, seconds), 4)


def _thinned(parts: Sequence[list[float]], *, share: float) -> list[list[float]]:
    """Put neighbours together where both fit into the share, as a timeline does with its bins."""
    kept = [list(parts[0])]
    for part in parts[1:]:
        last = kept[-1]
        if part[END] - last[START] <= share:
            kept[-1] = [last[START], part[END], *(a + b for a, b in zip(last[PASSES:], part[PASSES:], strict=True))]
        else:
            kept.append(list(part))
    return kept
