"""What an engine's `/metrics` says of it, once: names by Prometheus' conventions, meanings, and where values come from.

vLLM's own counters are right for a self-drafting engine, and are not repeated: requests, tokens, and of drafts
`vllm:spec_decode_num_drafts_total`, `..._num_draft_tokens_total`, `..._num_accepted_tokens_total` and
`..._num_accepted_tokens_per_pos_total`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from efficient_rollout.metrics.rollout_stats import RolloutStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """Describes one family of numbers of an engine, since it started.

    Attributes:
        name: Of the family; a counter's samples add `_total`.
        kind: A counter only grows; a gauge is a state.
        meaning: One line for `# HELP` and for a dashboard's tooltip.
        unit: For a dashboard's axis, of the sample.
        values: Value by label, from the engine's record since it started.
        label: What tells the values apart; None where there is one, under the empty label.
    """

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    unit: str
    values: Callable[[RolloutStats], Mapping[str, float]]
    label: str | None = None

    @property
    def sample(self) -> str:
        """Name of its samples, as in a query."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


_EXPORTED: dict[str, Exported] = {}


def _field(name: str) -> Callable[[RolloutStats], Mapping[str, float]]:
    def values(stats: RolloutStats) -> Mapping[str, float]:
        value = getattr(stats, name)
        return {} if value is None else {"": value}

    return values


def _by_position(stats: RolloutStats) -> Mapping[str, float]:
    return {str(position): drafted for position, drafted in enumerate(stats.drafted_per_position)}


def _export(
    name: str,
    kind: Literal["counter", "gauge"],
    unit: str,
    meaning: str,
    values: str | Callable[[RolloutStats], Mapping[str, float]],
    *,
    label: str | None = None,
) -> str:
    read = _field(values) if isinstance(values, str) else values
    name = f"efficient_rollout_{name}"
    one = Exported(name=name, kind=kind, meaning=meaning, unit=unit, values=read, label=label)
    if one.sample in _EXPORTED:
        raise ValueError(f"{one.sample} is exported twice")
    _EXPORTED[one.sample] = one
    return one.sample


TICKS = _export(
    "ticks", "counter", "ticks", "Engine steps that computed a token, by the reason for their draft length.",
    lambda stats: stats.ticks_by_reason, label="reason",
)  # fmt: skip
SPECULATIVE_TICKS = _export(
    "speculative_ticks", "counter", "ticks", "Engine steps that verified drafts.", "num_speculative_ticks"
)
# Beside vLLM's accepted tokens at a position, which it counts from 0 as well: vLLM has the number of drafts alone, and
# over drafts of several lengths that is not how often a position was drafted.
DRAFT_TOKENS_AT = _export(
    "draft_tokens", "counter", "tokens", "Draft tokens verified, by position in their draft, from 0.", _by_position,
    label="position",
)  # fmt: skip
DRAFT_SECONDS = _export(
    "draft_seconds", "counter", "s", "Time inside the drafter, of the slowest worker.", "draft_seconds"
)
DRAFT_PASSES = _export("draft_passes", "counter", "passes", "Passes of the drafter.", "num_draft_passes")
COPIES = _export(
    "copies",
    "counter",
    "tokens",
    "Tokens copied from requests' own text that passes of the drafter checked.",
    "num_copies",
)
COPIES_KEPT = _export(
    "copies_kept", "counter", "tokens", "Those that were the drafter's own draws, and became drafts.", "num_copies_kept"
)
WEIGHT_SYNCS = _export("weight_syncs", "counter", "syncs", "Weight syncs that were completed.", "num_weight_syncs")
WEIGHT_SYNC_SECONDS = _export(
    "weight_sync_seconds", "counter", "s", "Time of the weight syncs, requantizing included, of the slowest worker.",
    "weight_sync_seconds",
)  # fmt: skip
REQUANTIZE_SECONDS = _export(
    "requantize_seconds", "counter", "s", "Time of the requantizations in weight syncs, of the slowest worker.",
    "requantize_seconds",
)  # fmt: skip
WEIGHTS_CHECKSUM = _export(
    "weights_checksum", "gauge", "number", "Of the policy that the last weight sync brought; one policy, one number.",
    "weights_checksum",
)  # fmt: skip
PROVEN_WEIGHT_RATIO = _export(
    "proven_weight_ratio", "gauge", "ratio",
    "Share of the weights whose layers are asked in turn whether they compute with what came.", "proven_weight_share",
)  # fmt: skip
DRAFTER_FAULTS = _export("drafter_faults", "counter", "faults", "Faults that turned the drafter off.",
                         "num_drafter_faults")  # fmt: skip
STALE_DRAFTER = _export(
    "stale_drafter", "gauge", "yes or no", "1 while acceptance shows that the drafter does not follow the policy.",
    "num_stale_drafters",
)  # fmt: skip
UNCERTIFIED = _export(
    "uncertified", "gauge", "yes or no", "1 where the engine drafts on a GPU without a certificate of its kind.",
    "is_uncertified",
)  # fmt: skip
DRAFTER_BYTES = _export(
    "drafter_bytes", "gauge", "bytes", "Memory of the drafter's own weights, of all workers.", "drafter_bytes"
)
PACKED_WEIGHT_RATIO = _export(
    "packed_weight_ratio", "gauge", "ratio", "Share of the weights a draft step reads that it reads quantized.",
    "packed_weight_share",
)  # fmt: skip
PREDICTED_PLAIN_SECONDS = _export(
    "predicted_plain_seconds", "counter", "s", "Of ticks that drafted: plain decoding, for the tokens expected.",
    "predicted_plain_seconds",
)  # fmt: skip
PREDICTED_TICK_SECONDS = _export(
    "predicted_tick_seconds", "counter", "s", "Of the same ticks: what the controller expected them to take.",
    "predicted_tick_seconds",
)  # fmt: skip
MEASURED_PLAIN_SECONDS = _export(
    "measured_plain_seconds", "counter", "s", "Of the same ticks: plain decoding, for the tokens emitted.",
    "measured_plain_seconds",
)  # fmt: skip
MEASURED_TICK_SECONDS = _export(
    "measured_tick_seconds", "counter", "s", "Of the same ticks: what they took.", "measured_tick_seconds"
)


def all_exported() -> Mapping[str, Exported]:
    """Return every family by the name of its samples, in order of declaration."""
    return dict(_EXPORTED)
