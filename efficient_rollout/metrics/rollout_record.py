"""What one engine did between two weight syncs, and how that becomes a training step's metrics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from typing import Any

from efficient_rollout.errors import InputFileError
from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_stats import RolloutStats
from efficient_rollout.metrics.timeline import END, START, Bin, Lane, extent, is_lane, is_timeline, moved, selected

VALIDATION_PREFIX = names.PREFIX + "validation/"
TIMELINE_FILE = "timeline.jsonl"
# Engines kept of a step: those that ran longest, which the others waited for.
MAX_ENGINES = 4
# Lanes kept of a step, of those engines together.
MAX_STEP_LANES = 256
_OF_SYNCS = (
    "num_weight_syncs", "weight_sync_seconds", "requantize_seconds", "weights_checksum", "proven_weight_share",
    "is_as_sent",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Segment:
    """Holds an engine's statistics up to a weight sync, or since the last one.

    Attributes:
        first_request_time: Unix time of the first request in, None without requests. Engines behind one server have
            its times in common.
        last_response_time: Unix time of the last response out.
    """

    stats: RolloutStats = field(default_factory=RolloutStats)
    first_request_time: float | None = None
    last_response_time: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for the way between processes."""
        return {item.name: getattr(self, item.name) for item in fields(self)} | {"stats": self.stats.to_dict()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Segment":
        """Rebuild from `to_dict`."""
        return cls(**{**raw, "stats": RolloutStats.from_dict(raw["stats"])})

    @classmethod
    def merge(cls, parts: Sequence["Segment"]) -> "Segment":
        """Merge several segments into one; the seconds between the first request and the last response count once."""
        starts = [part.first_request_time for part in parts if part.first_request_time is not None]
        ends = [part.last_response_time for part in parts if part.last_response_time is not None]
        return cls(RolloutStats.merge(part.stats for part in parts), min(starts, default=None), max(ends, default=None))

    @property
    def rollout_seconds(self) -> float | None:
        """Return the seconds from first request in to last response out; None where nothing was generated."""
        if self.first_request_time is None or self.last_response_time is None:
            return None
        return self.last_response_time - self.first_request_time


_Engines = Sequence[Sequence[Segment]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimelines:
    """Holds a training step's rollout, a line of `TIMELINE_FILE`.

    Attributes:
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
        """Rebuild from `to_dict`; raise InputFileError where it is something else."""
        if isinstance(raw, dict) and raw.keys() == {item.name for item in fields(cls)}:
            engines, lanes = raw["engines"], raw["lanes"]
            if (
                all(type(raw[name]) is int for name in ("step", "num_engines", "num_responses"))
                and isinstance(engines, list) and all(map(is_timeline, engines))
                and isinstance(lanes, list) and all(isinstance(one, list) and all(map(is_lane, one)) for one in lanes)
                and len(lanes) == len(engines)
            ):  # fmt: skip
                return cls(**raw)
        raise InputFileError("not the timelines of a step")

    @classmethod
    def of(
        cls,
        step: int,
        by_engine: Mapping[str, Sequence[Bin]],
        lanes_by_engine: Mapping[str, Sequence[Lane]] | None = None,
        num_responses: int = 0,
    ) -> "StepTimelines":
        """Make those of a step, from what its engines recorded by clocks of their own."""
        longest = sorted((name for name, bins in by_engine.items() if bins), key=lambda name: -extent(by_engine[name]))
        engines: list[list[Bin]] = []
        lanes: list[list[Lane]] = []
        for name in longest[:MAX_ENGINES]:
            bins, responses = by_engine[name], (lanes_by_engine or {}).get(name, ())
            zero = min([bins[0][START], *(lane[START] for lane in responses)])
            engines.append([[b[START] - zero, b[END] - zero, *b[2:]] for b in bins])
            lanes.append([moved(lane, zero) for lane in responses])
        kept = {id(lane) for lane in selected(chain.from_iterable(lanes), MAX_STEP_LANES)}
        some = [[lane for lane in of_engine if id(lane) in kept] for of_engine in lanes]
        return cls(step=step, num_engines=len(longest), engines=engines, lanes=some, num_responses=num_responses)


def step_metrics(engines: Iterable[Sequence[Segment]], *, validated: bool) -> dict[str, float]:
    """Return one step's metrics from every engine's segments since the last report.

    A step is: rollout, training, weight sync, then perhaps validation. Where the step validated, each engine's
    segment after its last weight sync is the validation's, reported apart; all other segments are training.

    Counts of all engines come first; then, for the quantities in `names.PER_ENGINE`, the smallest, the mean and the
    largest over the engines that have them, where two do: a sum hides the engine that is sick. Data-parallel engines
    behind one server count alone here, but share the seconds of its rollout.

    Args:
        engines: For each engine its segments, oldest first; each ends with a weight sync, the last one is open.
        validated: The step's own metrics contain validation results.
    """
    engines, training, validation = _parts(engines, validated=validated)
    if not engines:
        return {}
    num_engines = sum(segments[0].stats.num_engines for segments in engines)
    merged = _merge_engines(training)
    metrics: dict[str, float] = {}
    if merged.first_request_time is not None or not validation:
        # A sync is counted by the segment that follows it.
        synced = _merge_engines(engines).stats
        stats = replace(merged.stats, num_engines=num_engines, **{name: getattr(synced, name) for name in _OF_SYNCS})
        metrics |= stats.to_metrics(rollout_seconds=merged.rollout_seconds) | _over_engines(training)
    if validation:
        merged = _merge_engines(validation)
        stats = replace(merged.stats, num_weight_syncs=0, num_engines=num_engines)
        reported = stats.to_metrics(rollout_seconds=merged.rollout_seconds) | _over_engines(validation)
        metrics |= {VALIDATION_PREFIX + name.removeprefix(names.PREFIX): value for name, value in reported.items()}
    return metrics


def step_timelines(step: int, engines: Iterable[Sequence[Segment]], *, validated: bool) -> StepTimelines:
    """Return the timelines of a step's training rollout; the other arguments are those of `step_metrics`."""
    stats = _merge_engines(_parts(engines, validated=validated)[1]).stats
    return StepTimelines.of(step, stats.timelines, stats.lanes, stats.num_responses)


def _parts(engines: Iterable[Sequence[Segment]], *, validated: bool) -> tuple[_Engines, _Engines, _Engines]:
    """Return the segments of engines that have any: all, those of training, and those of a validation behind it."""
    engines = [list(segments) for segments in engines if segments]
    if validated and any(len(segments) > 1 for segments in engines):
        return engines, [segments[:-1] for segments in engines], [segments[-1:] for segments in engines]
    return engines, engines, []


def _over_engines(engines: _Engines) -> dict[str, float]:
    merged = [Segment.merge(segments) for segments in engines if segments]
    by_engine = [one.stats.to_metrics(rollout_seconds=one.rollout_seconds) for one in merged]
    spread: dict[str, float] = {}
    for quantity in names.PER_ENGINE:
        values = [metrics[quantity] for metrics in by_engine if quantity in metrics]
        if len(values) > 1:
            spread[names.over_engines(names.ENGINE_MIN_PREFIX, quantity)] = min(values)
            spread[names.over_engines(names.ENGINE_MEAN_PREFIX, quantity)] = sum(values) / len(values)
            spread[names.over_engines(names.ENGINE_MAX_PREFIX, quantity)] = max(values)
    return spread


def _merge_engines(engines: _Engines) -> Segment:
    return Segment.merge([segment for segments in engines for segment in segments])
