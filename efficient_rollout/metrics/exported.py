"""What an engine's `/metrics` says of it, once: names by Prometheus' conventions, meanings, and where values come from.

vLLM's own counters are right for a self-drafting engine, and are not repeated: requests, tokens, and of drafts
`vllm:spec_decode_num_drafts_total`, `..._num_draft_tokens_total`, `..._num_accepted_tokens_total` and
`..._num_accepted_tokens_per_pos_total`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from efficient_rollout.metrics.rollout_stats import RolloutStats


@dataclass(frozen=True, slots=True)
class Exported:
    """Describes one family of numbers of an engine, since it started.

    Attributes:
        name: Of the family; a counter's samples add `_total`.
        kind: A counter only grows; a gauge is a state.
        unit: For a dashboard's axis, of the sample.
        field: Of the engine's record.
        meaning: One line for `# HELP` and for a dashboard's tooltip.
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

    def values(self, stats: RolloutStats) -> Mapping[str, float]:
        """Return what is known, by label; the only value of a family without one under the empty label."""
        value = getattr(stats, self.field)
        if isinstance(value, list):
            value = {str(place): one for place, one in enumerate(value)}
        if isinstance(value, dict):
            return value
        return {} if value is None else {"": value}


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
