"""From runs to numbers: ratios within each round against the faster plain engine, then medians and range.

Every row is printed, those that lose marked.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from efficient_rollout.bench.drafter_plan import DrafterPlan, Measured, Run
from efficient_rollout.cost_model.model_shape import read_model_shape
from efficient_rollout.tables import aligned, bracketed, spread

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
        "switching": _switching(plan, measured),
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


def _switching(plan: DrafterPlan, measured: Measured) -> list[dict[str, Any]]:
    """Return the ratio of ticks that draft and verify in turn to those of the same round that always do, or never."""
    rows, k = [], plan.shown_length
    for (name, batch), pairs in measured.switches.items():
        steady = zip(_of(measured.runs, name, batch, k), _of(measured.runs, name, batch, 0), strict=True)
        ratios = [
            pair / (always.tick_seconds + never.tick_seconds)
            for pair, (always, never) in zip(pairs, steady, strict=True)
        ]
        rows.append({"drafter": name, "batch": batch, "draft_tokens": k, "pair_over_steady_pair": spread(ratios)})
    return rows


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
    unpacked_bytes = read_bytes * (1 - memory["num_packed_weights"] / shape.num_weights)
    return {
        "drafter_bytes": memory["drafter_bytes"],
        "policy_read_bytes": read_bytes,
        "memory_ratio": memory["drafter_bytes"] / read_bytes,
        "byte_ratio": (memory["drafter_bytes"] + unpacked_bytes) / read_bytes,
    }


def table(summary: Mapping[str, Any]) -> str:
    """Return lines for a terminal.

    Args:
        summary: From `summarize`.
    """
    parts = [_plain(summary), _drafting(summary["drafting"]), _headline(summary["headline"], summary["memory"])]
    parts += [_switching_table(summary["switching"]), _weight_sync(summary["weight_sync"])]
    return "\n".join(parts)


def _plain(summary: Mapping[str, Any]) -> str:
    rows = [
        [
            row["arm"] + (" *" if summary["baseline"][str(row["batch"])] == row["arm"] else ""),
            str(row["batch"]),
            _milliseconds(row["step_seconds"]),
            f"{row['tokens_per_second']['median']:.1f}",
        ]
        for row in summary["plain"]
    ]
    return aligned([["plain (* baseline)", "batch", "step ms", "tokens/s"], *rows])


def _drafting(drafting: Sequence[Mapping[str, Any]]) -> str:
    header = ["drafter", "batch", "k", "draft step ms", "verify ms", "r", "verify/plain", "accepted", "over plain", ""]
    rows = []
    for row in drafting:
        name = [row["drafter"], str(row["batch"]), str(row["draft_tokens"])]
        rows.append([*name, *_passes(row), _ratio(row["speedup"]), "slower" if row["speedup"]["median"] < 1.0 else ""])
    return aligned([header, *rows], left=(0, len(header) - 1))


def _passes(row: Mapping[str, Any]) -> list[str]:
    if not row["draft_tokens"]:
        return ["-", _milliseconds(row["tick_seconds"]), "-", _ratio(row["tick_over_plain"]), "-"]
    return [
        _milliseconds(row["draft_step_seconds"]),
        _milliseconds(row["verify_seconds"]),
        _ratio(row["draft_over_plain"]),
        _ratio(row["verify_over_plain"]),
        f"{row['mean_accepted_length']['median']:.2f}",
    ]


def _headline(headline: Sequence[Mapping[str, Any]], memory: Mapping[str, Any]) -> str:
    header = ["drafter", "batch", "at k", "r", "byte ratio", "verify/plain", "best k", "over plain"]
    rows = [
        [
            row["drafter"],
            str(row["batch"]),
            str(row["draft_tokens"]),
            _ratio(row["draft_over_plain"]),
            f"{memory[row['drafter']]['byte_ratio']:.3f}",
            _ratio(row["verify_over_plain"]),
            str(row["best_draft_tokens"]),
            _ratio(row["best_speedup"]),
            f"{memory[row['drafter']]['memory_ratio']:.3f}",
        ]
        for row in headline
    ]
    return aligned([[*header, "drafter/policy bytes"], *rows])


def _switching_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [f"{row['drafter']}: {row['draft_tokens']}, 0", str(row["batch"]), _ratio(row["pair_over_steady_pair"])]
        for row in rows
    ]
    return aligned([["draft tokens in turn", "batch", "two ticks over two steady ones"], *lines], left=(0, 1, 2))


def _weight_sync(syncs: Mapping[str, Mapping[str, Any]]) -> str:
    seconds = {
        "requantize ms": "requantize_seconds",
        "load ms": "weight_load_seconds",
        "plain reload ms": "plain_reload_seconds",
    }
    ratios = {"of load": "requantize_over_load", "of plain reload": "requantize_over_plain_reload"}
    rows = [
        [name, *(_milliseconds(sync[key]) for key in seconds.values()), *(_ratio(sync[key]) for key in ratios.values())]
        for name, sync in syncs.items()
    ]
    return aligned([["drafter", *seconds, *ratios], *rows])


def _milliseconds(values: Mapping[str, float]) -> str:
    return bracketed(values, digits=2, factor=1e3)


def _ratio(values: Mapping[str, float]) -> str:
    return bracketed(values, digits=3)
