"""Running requests and draft lengths of an engine over time, in few numbers however many ticks.

A timeline is a list of bins in the order of time, and a bin is a list of floats, so that it travels as JSON:
`[start_s, end_s, request_seconds, seconds at k = 0, seconds at k = 1, ...]`, by a clock of the engine's own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from types import MappingProxyType
from typing import Any

from efficient_rollout.controller.observation import TickSpan
from efficient_rollout.errors import InputFileError
from efficient_rollout.metrics.lanes import Lane, is_lane, moved, selected

TIMELINE_FILE = "timeline.jsonl"
# Bins of one engine at most, and about half as many as are left when there are more: thinning is seldom then.
MAX_BINS, _SHARES = 256, 64
# Engines kept of a step: those that ran longest, which the others waited for.
MAX_ENGINES = 4
# Lanes kept of a step, of those engines together.
MAX_STEP_LANES = 256
START, END, REQUEST_SECONDS, FIRST_LENGTH = 0, 1, 2, 3

# The tail: no more than this share of the most requests that ran at once.
TAIL_SHARE = 0.25

Bin = list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimelines:
    """Holds a training step's rollout, a line of `TIMELINE_FILE`.

    Attributes:
        step: Its number.
        num_engines: Engines that have a timeline; those in `engines` are the `MAX_ENGINES` that ran longest.
        engines: Their timelines, the longest first, each in seconds since its own first bin, or its first lane's start.
        lanes: Their lanes, by the same clocks, some of each engine's: `MAX_STEP_LANES` of all at most.
        num_responses: Responses that ended in the rollout, on any engine.
    """

    step: int
    num_engines: int
    engines: list[list[Bin]]
    lanes: list[list[Lane]]
    num_responses: int

    @property
    def end_s(self) -> float:
        """Return when the last of its engines and responses ended."""
        return max((one[END] for of_engine in (*self.engines, *self.lanes) for one in of_engine), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types only."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Any) -> "StepTimelines":
        """Rebuild from `to_dict`.

        Raises:
            InputFileError: It is not what `to_dict` gives.
        """
        if not isinstance(raw, dict) or raw.keys() != {item.name for item in fields(cls)}:
            raise InputFileError("not the timelines of a step")
        engines, lanes = raw["engines"], raw["lanes"]
        are_whole = all(type(raw[name]) is int for name in ("step", "num_engines", "num_responses"))
        are_timelines = isinstance(engines, list) and all(_is_timeline(engine) for engine in engines)
        are_lanes = isinstance(lanes, list) and all(isinstance(one, list) and all(map(is_lane, one)) for one in lanes)
        if not are_whole or not are_timelines or not are_lanes or len(lanes) != len(engines):
            raise InputFileError("not the timelines of a step")
        return cls(**raw)

    @classmethod
    def of(
        cls,
        step: int,
        by_engine: Mapping[str, Sequence[Bin]],
        lanes_by_engine: Mapping[str, Sequence[Lane]] = MappingProxyType({}),
        num_responses: int = 0,
    ) -> "StepTimelines":
        """Make those of a step, from what its engines recorded by clocks of their own."""
        longest = sorted((name for name, bins in by_engine.items() if bins), key=lambda name: -_extent(by_engine[name]))
        engines: list[list[Bin]] = []
        lanes: list[list[Lane]] = []
        for name in longest[:MAX_ENGINES]:
            bins, responses = by_engine[name], lanes_by_engine.get(name, ())
            zero = min([bins[0][START], *(lane[START] for lane in responses)])
            engines.append([[b[START] - zero, b[END] - zero, *b[2:]] for b in bins])
            lanes.append([moved(lane, zero) for lane in responses])
        kept = {id(lane) for lane in selected(chain.from_iterable(lanes), MAX_STEP_LANES)}
        some = [[lane for lane in of_engine if id(lane) in kept] for of_engine in lanes]
        return cls(step=step, num_engines=len(longest), engines=engines, lanes=some, num_responses=num_responses)


def add_tick(bins: list[Bin], span: TickSpan) -> None:
    """Append one tick, in place."""
    at_lengths = [0.0] * span.num_draft_tokens + [span.seconds]
    bins.append([span.end_s - span.seconds, span.end_s, span.seconds * span.num_requests, *at_lengths])
    if len(bins) > MAX_BINS:
        bins[:] = _thinned(bins)


def joined(parts: Iterable[Sequence[Bin]]) -> list[Bin]:
    """Return one engine's timeline from parts of it, in whatever order; the parts stay as they are."""
    bins = sorted((list(one) for part in parts for one in part), key=lambda one: one[START])
    return _thinned(bins) if len(bins) > MAX_BINS else bins


def seconds_by_length(bins: Iterable[Bin]) -> list[float]:
    """Return the seconds at k = 0, 1, and so on."""
    total: list[float] = []
    for one in bins:
        total = _added(total, one[FIRST_LENGTH:])
    return total


def is_sampled(step: int) -> bool:
    """Tell whether a step's timeline is kept for good: powers of two, so that a long run keeps few."""
    return step > 0 and step & (step - 1) == 0


def _thinned(bins: Sequence[Bin]) -> list[Bin]:
    """Put neighbours together where both fit into a share of the whole time.

    Any two neighbours that stay apart span more than a share, so no more than twice as many bins as shares stay, and
    one. Seconds add up: nothing is lost but when exactly in its bin each was spent.
    """
    share = (bins[-1][END] - bins[0][START]) / _SHARES
    kept: list[Bin] = [list(bins[0])]
    for one in bins[1:]:
        last = kept[-1]
        if one[END] - last[START] <= share:
            kept[-1] = [last[START], max(last[END], one[END]), *_added(last[REQUEST_SECONDS:], one[REQUEST_SECONDS:])]
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


def _added(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    longer, shorter = (ours, theirs) if len(ours) >= len(theirs) else (theirs, ours)
    return [value + (shorter[index] if index < len(shorter) else 0.0) for index, value in enumerate(longer)]


def _extent(bins: Sequence[Bin]) -> float:
    return bins[-1][END] - bins[0][START]


def _is_timeline(bins: Any) -> bool:
    def is_bin(one: Any) -> bool:
        is_list = isinstance(one, list) and len(one) > FIRST_LENGTH
        return is_list and all(type(value) in (int, float) and 0.0 <= value < 1e9 for value in one)

    return isinstance(bins, list) and len(bins) > 0 and all(is_bin(one) for one in bins)
