"""Acceptance per draft position, on the policy's own responses, by how long their contexts are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_rollout.bench.work import Prompt
from efficient_rollout.cost_model.model_shape import read_model_shape
from efficient_rollout.errors import ConfigError
from efficient_rollout.metrics.rollout_stats import RolloutStats
from efficient_rollout.tables import aligned

TEMPERATURES = (1.0, 0.0)
# Response tokens at which a segment begins and the next one does. The middle one is there to reach the last.
SEGMENTS = ((0, 128), (128, 256), (256, 384))


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptancePlan:
    """Says what is counted."""

    checkpoints: Mapping[str, Path]  # directories by label; all have the shape of the engines' policy
    prompts: Sequence[Prompt]  # of natural responses
    eos_token_ids: tuple[int, ...]  # end a response
    num_draft_tokens: int  # k of every tick

    @property
    def longest_tokens(self) -> int:
        """Return the number of tokens of the longest prompt and response together."""
        return max(map(len, self.prompts)) + SEGMENTS[-1][1]


def check_checkpoints(checkpoints: Mapping[str, Path]) -> None:
    """Raise where engines could not serve all of them.

    Raises:
        ConfigError: Two differ in shape: no engine can serve both.
        InputFileError: One has no readable `config.json`.
    """
    shapes = {label: read_model_shape(path).description for label, path in checkpoints.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{label} is {shape}" for label, shape in shapes.items())
        raise ConfigError(f"--also-model must have the shape of --model: {listed}")


def measure_acceptance(plan: AcceptancePlan, engines: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row of counts and rates, JSON types, per checkpoint, drafter, temperature and segment.

    The engines, by drafter, end with the last checkpoint's weights.
    """
    from efficient_rollout.measuring import offline

    for label, checkpoint in plan.checkpoints.items():
        for drafter, engine in engines.items():
            offline.sync_weights(engine, str(checkpoint))
            for temperature in TEMPERATURES:
                for row in _segments(plan, engine, temperature):
                    yield {"checkpoint": label, "drafter": drafter, "temperature": temperature, **row}


def _segments(plan: AcceptancePlan, engine: Any, temperature: float) -> Iterator[dict[str, Any]]:
    from efficient_rollout.measuring import offline, scripted

    texts = list(plan.prompts)
    for start, end in SEGMENTS:
        num_responses, stats = len(texts), RolloutStats()
        if texts:
            result = offline.roll_out(
                engine,
                [(text, end - start) for text in texts],
                temperature=temperature,
                eos_token_ids=plan.eos_token_ids,
                extra_args={scripted.PATTERN: [plan.num_draft_tokens]},
                records=True,
            )
            stats, texts = result.stats, unfinished(texts, result.token_ids, end - start, plan.eos_token_ids)
        yield {"from_token": start, "to_token": end, "num_responses": num_responses, **acceptance(stats)}


def unfinished(
    texts: Sequence[Prompt], token_ids: Sequence[Sequence[int]], num_tokens: int, eos_token_ids: Sequence[int]
) -> list[Prompt]:
    """Return the texts with their continuations, without those that ended: before `num_tokens`, or with the last."""
    return [
        (*text, *ids)
        for text, ids in zip(texts, token_ids, strict=True)
        if len(ids) == num_tokens and ids[-1] not in eos_token_ids
    ]


def acceptance(stats: RolloutStats) -> dict[str, Any]:
    """Return rates from counts, as JSON types.

    Returns:
        `accepted_share`: of the drafts at a position, those accepted, and with them all before.
        `acceptance_rate`: of those whose predecessors were all accepted. Both by position, None without a draft.
    """
    drafted, accepted = stats.drafted_per_position, stats.accepted_per_position
    reached = [stats.num_verify_passes, *accepted]
    judged = [min(pair) for pair in zip(reached, drafted, strict=False)]
    return {
        "num_verify_passes": stats.num_verify_passes,
        "mean_accepted_length": stats.mean_accepted_length,
        "accepted_share": [_share(part, whole) for part, whole in zip(accepted, drafted, strict=True)],
        "acceptance_rate": [_share(part, whole) for part, whole in zip(accepted, judged, strict=True)],
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def acceptance_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rates by position: of the drafts whose predecessors were all accepted, the share that was too."""
    header = ["checkpoint", "drafter", "temperature", "response tokens", "responses", "drafts", "accepted"]
    lines = [[*header, "by position"]]
    for row in rows:
        segment, length = f"{row['from_token']}-{row['to_token']}", row["mean_accepted_length"]
        counts = [segment, str(row["num_responses"]), str(row["num_verify_passes"])]
        rates = " ".join("-" if rate is None else f"{rate:.3f}" for rate in row["acceptance_rate"])
        arm = [row["checkpoint"], row["drafter"], f"{row['temperature']:g}"]
        lines.append([*arm, *counts, "-" if length is None else f"{length:.2f}", rates or "-"])
    return aligned(lines, left=(0, 1, len(header)))
