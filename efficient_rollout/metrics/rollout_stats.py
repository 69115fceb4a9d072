"""Counts of one rollout: additive, so that engines merge exactly and ratios stay token-weighted."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import add
from typing import Any, ClassVar

from efficient_rollout.controller.rule import SpeedupSums
from efficient_rollout.controller.tick import FinishedTick
from efficient_rollout.metrics import names, timeline


@dataclass(slots=True, kw_only=True)
class RolloutStats:
    """Says what happened in the engines since the last report.

    `metrics/names.py` says what most of it is.

    Attributes:
        num_engines: Engines merged into this record; the workers of one engine are its ranks.
        num_verify_passes: Requests times ticks with at least one draft token.
        behind_end_per_position: Drafts that were the policy's own draws too, but behind a response's end.
        weight_sync_seconds: Of all weight syncs, requantizations included.
        packed_weight_share: None without a drafter.
        weights_checksum: This and the next two are None before a weight sync.
        predicted_plain_seconds: As in `SpeedupSums`, with the next three.
        timelines: By engine, its running requests and draft lengths over time, bounded (`metrics/timeline.py`).
        lanes: By engine, the responses that ended, bounded (`metrics/timeline.py`).
        num_responses: Those that ended, lanes or none.
    """

    num_engines: int = 0
    num_ticks: int = 0
    num_speculative_ticks: int = 0
    num_generated_tokens: int = 0
    num_verify_passes: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    behind_end_per_position: list[int] = field(default_factory=list)
    accepted_per_position: list[int] = field(default_factory=list)
    drafted_per_position: list[int] = field(default_factory=list)
    ticks_by_reason: dict[str, int] = field(default_factory=dict)
    draft_seconds: float = 0.0
    num_draft_passes: int = 0
    num_copies: int = 0
    num_copies_kept: int = 0
    weight_sync_seconds: float = 0.0
    requantize_seconds: float = 0.0
    num_weight_syncs: int = 0
    drafter_bytes: int = 0
    packed_weight_share: float | None = None
    weights_checksum: int | None = None
    proven_weight_share: float | None = None
    is_as_sent: int | None = None
    num_drafter_faults: int = 0
    num_stale_drafters: int = 0
    is_uncertified: int = 0
    predicted_plain_seconds: float = 0.0
    predicted_tick_seconds: float = 0.0
    measured_plain_seconds: float = 0.0
    measured_tick_seconds: float = 0.0
    timelines: dict[str, list[timeline.Bin]] = field(default_factory=dict)
    lanes: dict[str, list[timeline.Lane]] = field(default_factory=dict)
    num_responses: int = 0

    # Engines work side by side: these add up to nothing a clock would show, so the slowest engine counts.
    _LARGEST = frozenset(
        {"weight_sync_seconds", "requantize_seconds", "num_weight_syncs", "drafter_bytes", "is_uncertified",
         "weights_checksum"}
    )  # fmt: skip
    # The same policy everywhere: an engine with less of it quantized, or proven, is the one to know of.
    _SMALLEST = frozenset({"packed_weight_share", "proven_weight_share", "is_as_sent"})
    # What is so until it changes.
    _STATES = _SMALLEST | {"num_engines", "num_stale_drafters", "is_uncertified", "drafter_bytes", "weights_checksum"}
    _JOINED: ClassVar[Mapping[str, Callable[..., list[Any]]]] = {
        "timelines": timeline.joined,
        "lanes": timeline.joined_lanes,
    }

    def add_tick(self, tick: FinishedTick, *, engine: str = "") -> None:
        """Add one tick of this engine, whose name keeps its timeline apart from other engines'."""
        verified = tick.verified
        self.num_ticks += 1
        self.ticks_by_reason[tick.reason] = self.ticks_by_reason.get(tick.reason, 0) + 1
        self.num_generated_tokens += tick.num_emitted_tokens
        self.num_stale_drafters = int(tick.is_drafter_stale)
        self.add_speedup(tick.speedup)
        if tick.span is not None:
            timeline.add_tick(self.timelines.setdefault(engine, []), tick.span)
        if verified.num_passes:
            self.num_speculative_ticks += 1
            self.num_verify_passes += verified.num_passes
            self.num_draft_tokens += sum(verified.drafted)
            self.num_accepted_tokens += sum(verified.accepted)
            self.drafted_per_position = _combine(add, self.drafted_per_position, verified.drafted)
            self.accepted_per_position = _combine(add, self.accepted_per_position, verified.accepted)
            behind_end = [stood - gained for stood, gained in zip(verified.stood, verified.accepted, strict=True)]
            self.behind_end_per_position = _combine(add, self.behind_end_per_position, behind_end)

    def add_lane(self, lane: timeline.Lane, *, engine: str) -> None:
        """Add a response that ended."""
        self.num_responses += 1
        timeline.add_lane(self.lanes.setdefault(engine, []), lane)

    def add_speedup(self, speedup: SpeedupSums | None) -> None:
        """Add what a rule predicted and measured; None from one that predicts nothing."""
        if speedup is not None:
            for item in fields(speedup):
                setattr(self, item.name, getattr(self, item.name) + getattr(speedup, item.name))

    @property
    def mean_accepted_length(self) -> float | None:
        """Return the tokens a request gains per verify pass, its own included; None without one."""
        if not self.num_verify_passes:
            return None
        return 1.0 + self.num_accepted_tokens / self.num_verify_passes

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types only; `from_dict(to_dict())` is equal."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "RolloutStats":
        """Rebuild from `to_dict`; raises TypeError on an unknown key."""
        return cls(**raw)

    @classmethod
    def merge(cls, parts: Iterable["RolloutStats"]) -> "RolloutStats":
        """Merge several engines' records: counts add, durations and sizes keep the largest, a share the smallest."""
        total = cls()
        for part in parts:
            for item in fields(cls):
                ours, theirs = getattr(total, item.name), getattr(part, item.name)
                if join := cls._JOINED.get(item.name):
                    by_engine = {name: join([ours.get(name, []), theirs.get(name, [])]) for name in {**ours, **theirs}}
                    setattr(total, item.name, by_engine)
                    continue
                choose = max if item.name in cls._LARGEST else min if item.name in cls._SMALLEST else add
                setattr(total, item.name, _combine(choose, ours, theirs))
        return total

    def followed_by(self, later: "RolloutStats") -> "RolloutStats":
        """Return one engine's record over both times: counts and seconds add, a state is the later's; without lanes."""
        total = RolloutStats.merge([replace(one, timelines={}, lanes={}) for one in (self, later)])
        for name in ("weight_sync_seconds", "requantize_seconds", "num_weight_syncs"):
            setattr(total, name, getattr(self, name) + getattr(later, name))
        for name in self._STATES:
            setattr(total, name, getattr(self if getattr(later, name) is None else later, name))
        return total

    @classmethod
    def of_ranks(cls, ranks: Sequence["RolloutStats"]) -> "RolloutStats":
        """Return one engine's record from those of its ranks, which all count every tick: the first's counts.

        Each holds a part of the drafter, and what takes seconds takes the slowest rank's.
        """
        total = replace(ranks[0])
        total.drafter_bytes = sum(rank.drafter_bytes for rank in ranks)
        for name in ("draft_seconds", "weight_sync_seconds", "requantize_seconds"):
            setattr(total, name, max(getattr(rank, name) for rank in ranks))
        return total

    def to_metrics(self, *, rollout_seconds: float | None = None) -> dict[str, float]:
        """Return step metrics by the names in `names`; a ratio without a denominator is left out, never 0."""
        told: dict[str, float | None] = {
            names.NUM_ENGINES: self.num_engines,
            names.ENGINE_TICKS: self.num_ticks,
            names.GENERATED_TOKENS: self.num_generated_tokens,
            names.DRAFT_TOKENS: self.num_draft_tokens,
            names.ACCEPTED_TOKENS: self.num_accepted_tokens,
            names.ACCEPTED_BEHIND_END: sum(self.behind_end_per_position),
            names.DRAFT_SECONDS: self.draft_seconds,
            names.DRAFTER_BYTES: self.drafter_bytes,
            names.DRAFTER_FAULTS: self.num_drafter_faults,
            names.STALE_DRAFTER: self.num_stale_drafters,
            names.UNCERTIFIED: self.is_uncertified,
            names.PACKED_WEIGHT_SHARE: self.packed_weight_share,
            names.PROVEN_WEIGHT_SHARE: self.proven_weight_share,
            names.WEIGHTS_CHECKSUM: self.weights_checksum,
            names.WEIGHTS_AS_SENT: self.is_as_sent,
        }
        metrics = {name: value for name, value in told.items() if value is not None}
        if self.num_ticks:
            metrics[names.SPECULATIVE_TICK_SHARE] = self.num_speculative_ticks / self.num_ticks
            for reason, ticks in sorted(self.ticks_by_reason.items()):
                metrics[names.REASON_SHARE_PREFIX + reason] = ticks / self.num_ticks
        if self.num_draft_passes:
            metrics[names.DRAFT_PASSES] = self.num_draft_passes
            metrics[names.COPIES] = self.num_copies
            metrics[names.COPIES_KEPT] = self.num_copies_kept
        if self.mean_accepted_length is not None:
            metrics[names.ACCEPTANCE_RATE] = self.num_accepted_tokens / self.num_draft_tokens
            metrics[names.MEAN_ACCEPTED_LENGTH] = self.mean_accepted_length
            positions = zip(self.accepted_per_position, self.drafted_per_position, strict=True)
            for position, (accepted, drafted) in enumerate(positions, start=1):
                metrics[f"{names.ACCEPTANCE_RATE_AT_PREFIX}{position}"] = accepted / drafted
        if self.measured_tick_seconds > 0.0:
            metrics[names.PREDICTED_SPEEDUP] = self.predicted_plain_seconds / self.predicted_tick_seconds
            metrics[names.MEASURED_SPEEDUP] = self.measured_plain_seconds / self.measured_tick_seconds
        if self.num_weight_syncs:
            metrics[names.WEIGHT_SYNC_SECONDS] = self.weight_sync_seconds
            metrics[names.REQUANTIZE_SECONDS] = self.requantize_seconds
        if rollout_seconds:
            metrics[names.ROLLOUT_SECONDS] = rollout_seconds
            metrics[names.TOKENS_PER_SECOND] = self.num_generated_tokens / rollout_seconds
        return metrics


def _combine(choose: Callable[[Any, Any], Any], ours: Any, theirs: Any) -> Any:
    if isinstance(ours, list):
        return timeline.added(ours, theirs)
    if isinstance(ours, dict):
        return dict(Counter(ours) + Counter(theirs))
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    return choose(ours, theirs)


class Tally:
    """Keeps statistics that are taken now and then, and all of them since the start.

    What was counted since `take` was called last is `recent`. `num_engines` is 0 for a part of an engine's record.
    """

    def __init__(self, num_engines: int = 0) -> None:
        self.recent = RolloutStats(num_engines=num_engines)
        self._past = RolloutStats(num_engines=num_engines)

    def take(self, **state: Any) -> RolloutStats:
        """Return what was counted since the last call, with these values of its fields, and count anew."""
        taken = replace(self.recent, **state)
        self._past, self.recent = self._after(taken), RolloutStats(num_engines=self.recent.num_engines)
        return taken

    def total(self, **state: Any) -> RolloutStats:
        """Return all that was counted, with these values of the recent fields, nothing over time; takes nothing."""
        return self._after(replace(self.recent, **state))

    def _after(self, later: RolloutStats) -> RolloutStats:
        total = self._past.followed_by(later)
        if not later.num_ticks:  # the drafter is as the last tick found it
            total.num_stale_drafters = self._past.num_stale_drafters
        return total
