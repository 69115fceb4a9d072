"""What one engine did between two weight syncs, and how that becomes a training step's metrics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_stats import RolloutStats
from efficient_rollout.metrics.timeline import Bin

VALIDATION_PREFIX = names.PREFIX + "validation/"


@dataclass(frozen=True, slots=True)
class Segment:
    """An engine's statistics up to a weight sync, or since the last one.

    Attributes:
        stats: Counts of the engine.
        first_request_time: Unix time of the first request in, None without requests.
        last_response_time: Unix time of the last response out.
    """

    stats: RolloutStats = field(default_factory=RolloutStats)
    first_request_time: float | None = None
    last_response_time: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for the way between processes."""
        return {
            "stats": self.stats.to_dict(),
            "first_request_time": self.first_request_time,
            "last_response_time": self.last_response_time,
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Segment":
        """Rebuild from `to_dict`."""
        return cls(**{**raw, "stats": RolloutStats.from_dict(raw["stats"])})

    @classmethod
    def merge(cls, parts: Sequence["Segment"]) -> "Segment":
        """Several segments as one; the seconds between the first request and the last response count once."""
        starts = [part.first_request_time for part in parts if part.first_request_time is not None]
        ends = [part.last_response_time for part in parts if part.last_response_time is not None]
        return cls(RolloutStats.merge(part.stats for part in parts), min(starts, default=None), max(ends, default=None))

    @property
    def rollout_seconds(self) -> float | None:
        """First request in to last response out; None where nothing was generated."""
        if self.first_request_time is None or self.last_response_time is None:
            return None
        return self.last_response_time - self.first_request_time


def step_metrics(engines: Iterable[Sequence[Segment]], *, validated: bool) -> dict[str, float]:
    """One step's metrics from every engine's segments since the last report.

    A step is: rollout, training, weight sync, then perhaps validation. Where the step validated, each engine's
    segment after its last weight sync is the validation's, reported apart; all other segments are training.

    Args:
        engines: For each server, of one or more engines, its segments, oldest first; each ends with a weight sync,
            the last one is open.
        validated: The step's own metrics contain validation results.
    """
    engines = [list(segments) for segments in engines if segments]
    if not engines:
        return {}
    has_validation = _has_validation(engines, validated=validated)
    num_engines = sum(segments[0].stats.num_engines for segments in engines)
    # A sync is counted by the segment that follows it.
    synced = Segment.merge([Segment.merge(segments) for segments in engines]).stats
    training = _merge_engines(_training(engines, has_validation=has_validation))
    metrics: dict[str, float] = {}
    if training.first_request_time is not None or not has_validation:
        stats = replace(
            training.stats,
            num_weight_syncs=synced.num_weight_syncs,
            weight_sync_seconds=synced.weight_sync_seconds,
            requantize_seconds=synced.requantize_seconds,
            num_engines=num_engines,
        )
        metrics |= stats.to_metrics(rollout_seconds=training.rollout_seconds)
    if has_validation:
        validation = _merge_engines([segments[-1:] for segments in engines])
        stats = replace(validation.stats, num_weight_syncs=0, num_engines=num_engines)
        reported = stats.to_metrics(rollout_seconds=validation.rollout_seconds)
        metrics |= {VALIDATION_PREFIX + name.removeprefix(names.PREFIX): value for name, value in reported.items()}
    return metrics


def step_timelines(engines: Iterable[Sequence[Segment]], *, validated: bool) -> dict[str, list[Bin]]:
    """The training rollout's timeline of each engine that has one; the arguments of `step_metrics`."""
    engines = [list(segments) for segments in engines if segments]
    training = _training(engines, has_validation=_has_validation(engines, validated=validated))
    return _merge_engines(training).stats.timelines


def _has_validation(engines: Sequence[Sequence[Segment]], *, validated: bool) -> bool:
    return validated and any(len(segments) > 1 for segments in engines)


def _training(engines: Sequence[Sequence[Segment]], *, has_validation: bool) -> Sequence[Sequence[Segment]]:
    return [segments[:-1] if has_validation else segments for segments in engines]


def _merge_engines(engines: Sequence[Sequence[Segment]]) -> Segment:
    return Segment.merge([segment for segments in engines for segment in segments])
