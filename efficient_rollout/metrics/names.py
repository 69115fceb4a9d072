"""Every metric this package reports, once: name, unit, meaning, the good direction; and what `/metrics` shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PREFIX = "efficient_rollout/"


@dataclass(frozen=True, slots=True)
class Metric:
    """Describes one reported number: its key, with `PREFIX`, a line for a tooltip, and which direction is better."""

    name: str
    unit: str  # of SI, or ratio, tokens, count
    meaning: str
    good: Literal["up", "down"] | None = None


_REGISTRY: dict[str, Metric] = {}


def _declare(name: str, unit: str, meaning: str, good: Literal["up", "down"] | None = None) -> str:
    key = PREFIX + name
    if key in _REGISTRY:
        raise ValueError(f"metric {key} is declared twice")
    _REGISTRY[key] = Metric(key, unit, meaning, good)
    return key


ROLLOUT_SECONDS = _declare("rollout_seconds", "s", "First request in to last response out.", "down")
GENERATED_TOKENS = _declare("generated_tokens", "tokens", "Response tokens of all engines.")
TOKENS_PER_SECOND = _declare("generated_tokens_per_second", "tokens/s", "Response tokens over rollout seconds.", "up")
ENGINE_TICKS = _declare("engine_ticks", "count", "Engine steps that computed at least one token, all engines.")
SPECULATIVE_TICK_SHARE = _declare("speculative_tick_share", "ratio", "Ticks that verified drafts, over all ticks.")
DRAFT_TOKENS = _declare("draft_tokens", "tokens", "Draft tokens verified.")
ACCEPTED_TOKENS = _declare("accepted_tokens", "tokens", "Draft tokens accepted: those that requests gained.")
ACCEPTED_BEHIND_END = _declare(
    "accepted_behind_end_tokens", "tokens", "Draft tokens that stood behind a response's end, which no request got."
)
ACCEPTANCE_RATE = _declare("acceptance_rate", "ratio", "Accepted over verified draft tokens.", "up")
ACCEPTANCE_RATE_AT_PREFIX = _declare(
    "acceptance_rate_at/", "ratio", "Accepted over verified draft tokens at this position of the draft.", "up"
)
MEAN_ACCEPTED_LENGTH = _declare(
    "mean_accepted_length", "tokens", "Tokens a request gains per verify pass, its own included; 1.0 is no gain.", "up"
)
DRAFT_SECONDS = _declare("draft_seconds", "s", "Time inside the drafter, summed over engines.", "down")
DRAFT_PASSES = _declare("draft_passes", "count", "Passes of the drafter, summed over engines.")
COPIES = _declare("copies", "tokens", "Tokens copied from requests' own text that passes of the drafter checked.")
COPIES_KEPT = _declare("copies_kept", "tokens", "Those that were the drafter's own draws, and became drafts.", "up")
REQUANTIZE_SECONDS = _declare(
    "requantize_seconds", "s", "Longest requantization of an engine since last report.", "down"
)
WEIGHT_SYNC_SECONDS = _declare(
    "weight_sync_seconds", "s", "Longest weight sync of an engine since last report.", "down"
)
WEIGHTS_CHECKSUM = _declare(
    "weights_checksum", "number", "Of the policy that the last weight sync brought; the same policy has the same."
)
PROVEN_WEIGHT_SHARE = _declare(
    "proven_weight_share",
    "ratio",
    "Share of an engine's weights, the smallest, whose layers are asked in turn whether they compute with what came.",
    "up",
)
WEIGHTS_AS_SENT = _declare(
    "weights_as_sent",
    "yes or no",
    "1 where every engine's weights have the checksums that the trainer sent along.",
    "up",
)
DRAFTER_BYTES = _declare(
    "drafter_bytes", "bytes", "Largest memory the drafter's own weights take in an engine.", "down"
)
PACKED_WEIGHT_SHARE = _declare(
    "packed_weight_share", "ratio", "Smallest share of an engine's weights that its drafter reads quantized.", "up"
)
DRAFTER_FAULTS = _declare("drafter_faults", "count", "Faults that turned an engine's drafter off.", "down")
STALE_DRAFTER = _declare("stale_drafter", "count", "Engines whose drafter does not follow the policy.", "down")
UNCERTIFIED = _declare(
    "uncertified", "yes or no", "1 where an engine drafts on a GPU without a certificate of its kind.", "down"
)
NUM_ENGINES = _declare("engines", "count", "Engines that reported.")
PREDICTED_SPEEDUP = _declare(
    "predicted_speedup", "ratio", "Of ticks that drafted, over plain decoding, as the controller expected it.", "up"
)
MEASURED_SPEEDUP = _declare(
    "measured_speedup", "ratio", "The same ticks by the clock, over the controller's estimate of a plain tick.", "up"
)
PROBABILITY_DIFFERENCE = _declare(
    "probability_difference_mean",
    "ratio",
    "Mean over sampled tokens of the engine's probability less the trainer's, without sign; OpenRLHF jobs that ask "
    "the engine for log-probabilities.",
    "down",
)
REASON_SHARE_PREFIX = _declare("decision_share/", "ratio", "Share of ticks decided for this reason.")
ENGINE_MIN_PREFIX = _declare("engine_min/", "as the quantity", "Smallest over engines, of the quantity that follows.")
ENGINE_MEAN_PREFIX = _declare(
    "engine_mean/", "as the quantity", "Plain mean over engines, a busy one like an idle one."
)
ENGINE_MAX_PREFIX = _declare("engine_max/", "as the quantity", "Largest over engines, of the quantity that follows.")

# What tells a sick engine from its neighbours: it takes longer, or gives less in the same time, does not draft while
# others do, or has its drafts rejected.
PER_ENGINE = (
    ROLLOUT_SECONDS,
    TOKENS_PER_SECOND,
    ENGINE_TICKS,
    SPECULATIVE_TICK_SHARE,
    ACCEPTANCE_RATE,
    MEAN_ACCEPTED_LENGTH,
)


def over_engines(prefix: str, quantity: str) -> str:
    """Return the name of one of `PER_ENGINE` under one of the three prefixes for the spread over engines."""
    return prefix + quantity.removeprefix(PREFIX)


def all_metrics() -> tuple[Metric, ...]:
    """Return every declared metric, in order of declaration."""
    return tuple(_REGISTRY.values())


def declared(name: str) -> Metric:
    """Return the metric of this name, or the one that ends in a slash and that it begins with; KeyError without."""
    return _REGISTRY[_key(name)]


def is_declared(name: str) -> bool:
    """Tell whether `declared` knows this name."""
    return _key(name) in _REGISTRY


def _key(name: str) -> str:
    return name if name in _REGISTRY else name.rpartition("/")[0] + "/"


@dataclass(frozen=True, slots=True)
class Exported:
    """Describes one family of numbers of an engine, since it started: a field of its record.

    Attributes:
        label: What tells the field's values apart, by key or by place; None where there is one.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    field: str
    meaning: str
    label: str | None = None

    @property
    def sample(self) -> str:
        """Name of its samples, as in a query."""
        return f"{self.name}_total" if self.kind == "counter" else self.name

    def values(self, stats: object) -> Mapping[str, float]:
        """Return what is known, by label; the only value of a family without one under the empty label."""
        value = getattr(stats, self.field)
        if isinstance(value, list):
            return {str(place): one for place, one in enumerate(value)}
        return value if isinstance(value, dict) else {} if value is None else {"": value}


# vLLM's own counters are right for a self-drafting engine, and are not repeated: requests, tokens, and of drafts
# `vllm:spec_decode_num_drafts_total`, `..._num_draft_tokens_total`, `..._num_accepted_tokens_total` and
# `..._num_accepted_tokens_per_pos_total`.
_EXPORTED = (
    Exported("efficient_rollout_ticks", "counter", "ticks", "ticks_by_reason",
             "Engine steps that computed a token, by the reason for their draft length.", label="reason"),
    Exported("efficient_rollout_speculative_ticks", "counter", "ticks", "num_speculative_ticks",
             "Engine steps that verified drafts."),
    # Beside vLLM's accepted tokens at a position, which it counts from 0 as well: vLLM has the number of drafts alone,
    # and over drafts of several lengths that is not how often a position was drafted.
    Exported("efficient_rollout_draft_tokens", "counter", "tokens", "drafted_per_position",
             "Draft tokens verified, by position in their draft, from 0.", label="position"),
    Exported("efficient_rollout_draft_seconds", "counter", "s", "draft_seconds",
             "Time inside the drafter, of the slowest worker."),
    Exported("efficient_rollout_draft_passes", "counter", "passes", "num_draft_passes", "Passes of the drafter."),
    Exported("efficient_rollout_copies", "counter", "tokens", "num_copies",
             "Tokens copied from requests' own text that passes of the drafter checked."),
    Exported("efficient_rollout_copies_kept", "counter", "tokens", "num_copies_kept",
             "Those that were the drafter's own draws, and became drafts."),
    Exported("efficient_rollout_weight_syncs", "counter", "syncs", "num_weight_syncs",
             "Weight syncs that were completed."),
    Exported("efficient_rollout_weight_sync_seconds", "counter", "s", "weight_sync_seconds",
             "Time of the weight syncs, requantizing included, of the slowest worker."),
    Exported("efficient_rollout_requantize_seconds", "counter", "s", "requantize_seconds",
             "Time of the requantizations in weight syncs, of the slowest worker."),
    Exported("efficient_rollout_weights_checksum", "gauge", "number", "weights_checksum",
             "Of the policy that the last weight sync brought; one policy, one number."),
    Exported("efficient_rollout_proven_weight_ratio", "gauge", "ratio", "proven_weight_share",
             "Share of the weights whose layers are asked in turn whether they compute with what came."),
    Exported("efficient_rollout_drafter_faults", "counter", "faults", "num_drafter_faults",
             "Faults that turned the drafter off."),
    Exported("efficient_rollout_stale_drafter", "gauge", "yes or no", "num_stale_drafters",
             "1 while acceptance shows that the drafter does not follow the policy."),
    Exported("efficient_rollout_uncertified", "gauge", "yes or no", "is_uncertified",
             "1 where the engine drafts on a GPU without a certificate of its kind."),
    Exported("efficient_rollout_drafter_bytes", "gauge", "bytes", "drafter_bytes",
             "Memory of the drafter's own weights, of all workers."),
    Exported("efficient_rollout_packed_weight_ratio", "gauge", "ratio", "packed_weight_share",
             "Share of the weights a draft step reads that it reads quantized."),
    Exported("efficient_rollout_predicted_plain_seconds", "counter", "s", "predicted_plain_seconds",
             "Of ticks that drafted: plain decoding, for the tokens expected."),
    Exported("efficient_rollout_predicted_tick_seconds", "counter", "s", "predicted_tick_seconds",
             "Of the same ticks: what the controller expected them to take."),
    Exported("efficient_rollout_measured_plain_seconds", "counter", "s", "measured_plain_seconds",
             "Of the same ticks: plain decoding, for the tokens emitted."),
    Exported("efficient_rollout_measured_tick_seconds", "counter", "s", "measured_tick_seconds",
             "Of the same ticks: what they took."),
)  # fmt: skip


def all_exported() -> Mapping[str, Exported]:
    """Return every family by the name of its samples, in order of declaration."""
    return {one.sample: one for one in _EXPORTED}
