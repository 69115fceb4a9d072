"""From runs to numbers: ratios within each round against the faster plain engine, then medians and range."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from efficient_rollout.bench.drafter_plan import DrafterPlan, Measured, Run
from efficient_rollout.cost_model.model_shape import read_model_shape
from efficient_rollout.tables import spread

SCHEMA_VERSION = 2


def summarize(plan: DrafterPlan, measured: Measured) -> dict[str, Any]:
    """Return everything but acceptance, as JSON types.

    Args:
        plan: What was measured.
        measured: All of its rounds.
    """
    baselines = {batch: baseline_of(measured.runs, plan.plain_arms, batch) for batch in plan.batches}
    rows = drafting_rows(measured.runs, plan.drafters, baselines)
    return {
        "baseline": {str(batch): arm for batch, arm in baselines.items()},
        "plain": [_plain_row(measured.runs, arm, batch) for batch in plan.batches for arm in plan.plain_arms],
        "drafting": rows,
        "headline": headline(rows, plan.shown_length),
        "switching": _switching(measured),
        "weight_sync": {name: _sync(measured, name) for name in plan.drafters},
        "memory": {name: _memory(plan, measured, name) for name in plan.drafters},
    }


def baseline_of(runs: Iterable[Run], plain_arms: Sequence[str], batch: int) -> str:
    """Return the plain engine with the shortest median tick at this batch: plain decoding at its best."""
    runs = list(runs)
    return min(plain_arms, key=lambda arm: median(run.tick_seconds for run in _of(runs, arm, batch, 0)))


def _of(runs: Iterable[Run], arm: str, batch: int, k: int) -> list[Run]:
    """Return one run per round, in the order of the rounds."""
    found = [run for run in runs if (run.arm, run.batch, run.num_draft_tokens) == (arm, batch, k)]
    return sorted(found, key=lambda run: run.round)


def _plain_row(runs: Sequence[Run], arm: str, batch: int) -> dict[str, Any]:
    rounds = _of(runs, arm, batch, 0)
    return {
        "arm": arm,
        "batch": batch,
        "step_seconds": spread([run.tick_seconds for run in rounds]),
        "tokens_per_second": spread([run.decoded_tokens / run.decode_seconds for run in rounds]),
    }


def drafting_rows(runs: Sequence[Run], drafters: Iterable[str], baselines: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return one row per drafter, batch and k, those slower than plain included.

    Args:
        runs: Of all rounds.
        drafters: Names of the drafting arms.
        baselines: The plain arm to compare with, by batch.
    """
    rows = []
    for drafter in drafters:
        for batch, baseline in baselines.items():
            plain = _of(runs, baseline, batch, 0)
            lengths = sorted({run.num_draft_tokens for run in runs if run.arm == drafter})
            rows += [_drafting_row(_of(runs, drafter, batch, k), plain) for k in lengths]
    return rows


def _drafting_row(rounds: Sequence[Run], plain: Sequence[Run]) -> dict[str, Any]:
    pairs = list(zip(rounds, plain, strict=True))
    first = rounds[0]
    row: dict[str, Any] = {
        "drafter": first.arm,
        "batch": first.batch,
        "draft_tokens": first.num_draft_tokens,
        "tick_seconds": spread([run.tick_seconds for run in rounds]),
        "tick_over_plain": spread([run.tick_seconds / base.tick_seconds for run, base in pairs]),
        "tokens_per_second": spread([run.decoded_tokens / run.decode_seconds for run in rounds]),
        "speedup": spread([base.decode_seconds / run.decode_seconds for run, base in pairs]),
        "mean_context_tokens": median(run.mean_context_tokens or 0.0 for run in rounds),
        "num_ticks": sum(run.num_ticks for run in rounds),
        "part_seconds": {
            part: median(run.part_seconds.get(part, 0.0) for run in rounds) for part in first.part_seconds
        },
    }
    if first.num_draft_tokens:
        row |= {
            "draft_step_seconds": spread([run.draft_step_seconds or 0.0 for run in rounds]),
            "verify_seconds": spread([run.verify_seconds or 0.0 for run in rounds]),
            "draft_over_plain": spread([(run.draft_step_seconds or 0.0) / base.tick_seconds for run, base in pairs]),
            "verify_over_plain": spread([(run.verify_seconds or 0.0) / base.tick_seconds for run, base in pairs]),
            "mean_accepted_length": spread([run.mean_accepted_length or 0.0 for run in rounds]),
        }
    return row


def headline(rows: Sequence[Mapping[str, Any]], shown: int) -> list[dict[str, Any]]:
    """Return per drafter and batch: r, v, and the k with the largest median speed-up, 0 among the choices.

    Args:
        rows: From `drafting_rows`.
        shown: k whose r and v are given.
    """
    found = []
    for drafter, batch in dict.fromkeys((row["drafter"], row["batch"]) for row in rows):
        of_both = [row for row in rows if (row["drafter"], row["batch"]) == (drafter, batch)]
        best = max(of_both, key=lambda row: float(row["speedup"]["median"]))
        at = next(row for row in of_both if row["draft_tokens"] == shown)
        found.append(
            {
                "drafter": drafter,
                "batch": batch,
                "draft_tokens": shown,
                "draft_over_plain": at["draft_over_plain"],
                "verify_over_plain": at["verify_over_plain"],
                "best_draft_tokens": best["draft_tokens"],
                "best_speedup": best["speedup"],
            }
        )
    return found


def _switching(measured: Measured) -> list[dict[str, Any]]:
    groups: dict[tuple[str, int, int], list[float]] = {}
    for run in measured.switches:
        ratio = run.pair_seconds / run.steady_pair_seconds
        groups.setdefault((run.arm, run.batch, run.num_draft_tokens), []).append(ratio)
    return [
        {"drafter": drafter, "batch": batch, "draft_tokens": k, "pair_over_steady_pair": spread(ratios)}
        for (drafter, batch, k), ratios in groups.items()
    ]


def _sync(measured: Measured, drafter: str) -> dict[str, Any]:
    runs = [run for run in measured.syncs if run.arm == drafter]
    loads = [run.weight_sync_seconds - run.requantize_seconds for run in runs]
    return {
        "requantize_seconds": spread([run.requantize_seconds for run in runs]),
        "weight_load_seconds": spread(loads),
        "plain_reload_seconds": spread([run.plain_reload_seconds for run in runs]),
        "requantize_over_load": spread([run.requantize_seconds / load for run, load in zip(runs, loads, strict=True)]),
        "requantize_over_plain_reload": spread([run.requantize_seconds / run.plain_reload_seconds for run in runs]),
    }


def _memory(plan: DrafterPlan, measured: Measured, drafter: str) -> dict[str, Any]:
    memory, shape = measured.memory[drafter], read_model_shape(plan.model)
    # What a decode step reads: every matrix, the output head among them; of the embedding only single rows.
    read_bytes = shape.weight_bytes(plan.dtype)
    unpacked_bytes = read_bytes * (1 - memory.num_packed_weights / shape.num_weights)
    return {
        "drafter_bytes": memory.drafter_bytes,
        "policy_read_bytes": read_bytes,
        "memory_ratio": memory.drafter_bytes / read_bytes,
        "byte_ratio": (memory.drafter_bytes + unpacked_bytes) / read_bytes,
    }
