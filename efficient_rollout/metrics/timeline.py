"""Running requests and draft lengths of an engine over time, and what each of its responses did, in few numbers.

There are few however many ticks and responses there are, and however long.

A timeline is a list of bins in the order of time, and a bin is a list of floats, so that it travels as JSON:
`[start_s, end_s, request_seconds, seconds at k = 0, seconds at k = 1, ...]`, by a clock of the engine's own.

A lane is a response's: `[start_s, end_s, num_tokens]`, from the tick that its request was first scheduled in to the one
that it ended in, by the same clock; and behind them, five for each part in which it drafted: `start_s, end_s,
num_passes, num_drafted, num_accepted`. Between parts it was prefilled, or decoded plainly. Nothing in it names the
request.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from efficient_rollout.controller.tick import TickSpan

# Bins of one engine at most, and about half as many as are left when there are more: thinning is seldom then.
MAX_BINS, _SHARES = 256, 64
# Parts of a lane at most. What fits into a share of the lane's time so far is one part, of whatever draft lengths.
MAX_PARTS, _LANE_SHARES = 40, 12
# Lanes of one engine between two reports: all of them up to twice as many.
MAX_LANES = 512
# The tail: no more than this share of the most requests that ran at once.
TAIL_SHARE = 0.25

START, END = 0, 1
REQUEST_SECONDS, FIRST_LENGTH = 2, 3
NUM_TOKENS, FIRST_PART = 2, 3
PASSES, DRAFTED, ACCEPTED, PART = 2, 3, 4, 5

Bin = list[float]
Lane = list[float]


def add_tick(bins: list[Bin], span: TickSpan) -> None:
    """Append one tick, in place."""
    at_lengths = [0.0] * span.num_draft_tokens + [span.seconds]
    bins.append([span.end_s - span.seconds, span.end_s, span.seconds * span.num_requests, *at_lengths])
    if len(bins) > MAX_BINS:
        bins[:] = _thinned(bins, extent(bins) / _SHARES)


def joined(parts: Iterable[Sequence[Bin]]) -> list[Bin]:
    """Return one engine's timeline from parts of it, in whatever order; the parts stay as they are."""
    bins = sorted((list(one) for part in parts for one in part), key=lambda one: one[START])
    return _thinned(bins, extent(bins) / _SHARES) if len(bins) > MAX_BINS else bins


def seconds_by_length(bins: Iterable[Bin]) -> list[float]:
    """Return the seconds at k = 0, 1, and so on."""
    total: list[float] = []
    for one in bins:
        total = added(total, one[FIRST_LENGTH:])
    return total


def is_sampled(step: int) -> bool:
    """Tell whether a step's timeline is kept for good: powers of two, so that a long run keeps few."""
    return step > 0 and step & (step - 1) == 0


def _thinned(parts: Sequence[list[float]], share: float) -> list[list[float]]:
    """Put neighbours together where both fit into `share` seconds: hardly more than two parts a share stay.

    Numbers add up: nothing is lost but when exactly in its part each was spent.
    """
    kept = [list(parts[0])]
    for one in parts[1:]:
        last = kept[-1]
        if one[END] - last[START] <= share:
            kept[-1] = [last[START], max(last[END], one[END]), *added(last[END + 1 :], one[END + 1 :])]
        else:
            kept.append(list(one))
    return kept


def busy_seconds(one: Bin) -> float:
    """Return the seconds of ticks in a bin."""
    return sum(one[FIRST_LENGTH:])


def mean_requests(one: Bin) -> float:
    """Return the mean number of requests that ran in a bin."""
    return one[REQUEST_SECONDS] / busy_seconds(one) if busy_seconds(one) > 0.0 else 0.0


def tail_seconds(bins: Sequence[Bin]) -> float:
    """Return the seconds behind the last bin with more than `TAIL_SHARE` of the requests that ran at most."""
    most = max((mean_requests(one) for one in bins), default=0.0)
    ends = [one[END] for one in bins if mean_requests(one) > TAIL_SHARE * most]
    return bins[-1][END] - ends[-1] if ends else 0.0


def added(ours: Sequence[Any], theirs: Sequence[Any]) -> list[Any]:
    """Add number by number; where one is longer, its end stays as it is."""
    return [one + other for one, other in zip_longest(ours, theirs, fillvalue=0)]


def extent(bins: Sequence[Bin]) -> float:
    """Return the seconds from the first bin's beginning to the last one's end."""
    return bins[-1][END] - bins[0][START]


def is_timeline(bins: Any) -> bool:
    """Tell whether a value from a file is a timeline."""
    return isinstance(bins, list) and len(bins) > 0 and all(_are_numbers(one, FIRST_LENGTH + 1) for one in bins)


def is_lane(one: Any) -> bool:
    """Tell whether a value from a file is a lane."""
    return _are_numbers(one, FIRST_PART) and (len(one) - FIRST_PART) % PART == 0


def _are_numbers(one: Any, least: int) -> bool:
    is_long = isinstance(one, list) and len(one) >= least
    return is_long and all(type(value) in (int, float) and 0.0 <= value < 1e9 for value in one)


@dataclass(slots=True)
class _Open:
    start_s: float
    parts: list[list[float]] = field(default_factory=list)


class LaneRecorder:
    """Records the lanes of one engine, by the timeline's clock. A tick in which nothing is drafted costs nothing."""

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
            if is_same or (now - last[START]) * _LANE_SHARES <= now - lane.start_s:
                last[END] = now
                last[PASSES] += 1
                last[DRAFTED] += num_drafted
                last[ACCEPTED] += num_accepted
                return
        parts.append([max(self._before, lane.start_s), now, 1, num_drafted, num_accepted])
        if len(parts) > MAX_PARTS:
            lane.parts = _thinned(parts, (now - lane.start_s) / _LANE_SHARES)

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


def joined_lanes(parts: Iterable[Sequence[Lane]]) -> list[Lane]:
    """Return one engine's lanes from parts of them; the parts stay as they are."""
    lanes = [lane for part in parts for lane in part]
    return selected(lanes, MAX_LANES) if len(lanes) > 2 * MAX_LANES else lanes


def selected(lanes: Iterable[Lane], limit: int) -> list[Lane]:
    """Return `limit` lanes at most, those that ended last first.

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


def _rounded(seconds: float) -> float:
    return round(max(0.0, seconds), 4)
