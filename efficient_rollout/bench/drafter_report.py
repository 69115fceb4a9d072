"""From runs to numbers: ratios within each round against the faster plain engine, then medians and range.

Every row is printed, those that lose marked.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from efficient_rollout.bench.drafter import DrafterPlan, Measured, Run
from efficient_rollout.bench.report import require_matplotlib
from efficient_rollout.cost_model.model_shape import read_model_shape
from efficient_rollout.tables import aligned, bracketed, spread

SCHEMA_VERSION = 2


def summarize(plan: DrafterPlan, measured: Measured) -> dict[str, Any]:
    """Return everything but acceptance, as JSON types."""
    runs = measured.runs
    baselines = {batch: baseline_of(runs, plan.plain_arms, batch) for batch in plan.batches}
    rows = [
        _drafting_row(_of(runs, drafter, batch, k), _of(runs, baseline, batch, 0))
        for drafter in plan.drafters
        for batch, baseline in baselines.items()
        for k in (0, *plan.lengths)
    ]
    return {
        "baseline": {str(batch): arm for batch, arm in baselines.items()},
        "plain": [_plain_row(_of(runs, arm, batch, 0)) for batch in plan.batches for arm in plan.plain_arms],
        "drafting": rows,
        "headline": _headline(rows, plan.shown_length),
        "switching": [
            _switching_row(plan.shown_length, measured, name, batch, pairs)
            for (name, batch), pairs in measured.switches.items()
        ],
        "weight_sync": {name: _sync(measured, name) for name in plan.drafters},
        "memory": {name: _memory(plan, measured.memory[name]) for name in plan.drafters},
    }


def baseline_of(runs: Iterable[Run], plain_arms: Sequence[str], batch: int) -> str:
    """Return the plain engine with the shortest median tick at this batch: plain decoding at its best."""
    runs = list(runs)
    return min(plain_arms, key=lambda arm: median(run.tick_seconds for run in _of(runs, arm, batch, 0)))


def _of(runs: Iterable[Run], arm: str, batch: int, k: int) -> list[Run]:
    """Return one run per round, in the order of the rounds."""
    found = [run for run in runs if (run.arm, run.batch, run.num_draft_tokens) == (arm, batch, k)]
    return sorted(found, key=lambda run: run.round)


def _plain_row(rounds: Sequence[Run]) -> dict[str, Any]:
    return {
        "arm": rounds[0].arm,
        "batch": rounds[0].batch,
        "step_seconds": spread([run.tick_seconds for run in rounds]),
        "tokens_per_second": spread([run.decoded_tokens / run.decode_seconds for run in rounds]),
    }


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
        "num_ticks": sum(run.num_ticks for run in rounds),
        "part_seconds": {
            part: median(run.part_seconds.get(part, 0.0) for run in rounds) for part in first.part_seconds
        },
    }
    if first.num_draft_tokens:
        row |= {name: spread([getattr(run, name) for run in rounds]) for name in _OF_DRAFTS}
        row["draft_over_plain"] = spread([run.draft_step_seconds / base.tick_seconds for run, base in pairs])
        row["verify_over_plain"] = spread([run.verify_seconds / base.tick_seconds for run, base in pairs])
    return row


# Fields of a run that drafts.
_OF_DRAFTS = ("draft_step_seconds", "verify_seconds", "mean_accepted_length")


def _headline(rows: Sequence[Mapping[str, Any]], shown: int) -> list[dict[str, Any]]:
    """Return per drafter and batch: r and v of the shown k, and the k with the largest median speed-up, 0 too."""
    found = []
    for drafter, batch in dict.fromkeys((row["drafter"], row["batch"]) for row in rows):
        of_both = {row["draft_tokens"]: row for row in rows if (row["drafter"], row["batch"]) == (drafter, batch)}
        best = max(of_both.values(), key=lambda row: float(row["speedup"]["median"]))
        names = ("drafter", "batch", "draft_tokens", "draft_over_plain", "verify_over_plain")
        found.append(
            {name: of_both[shown][name] for name in names}
            | {"best_draft_tokens": best["draft_tokens"], "best_speedup": best["speedup"]}
        )
    return found


def _switching_row(k: int, measured: Measured, name: str, batch: int, pairs: Sequence[float]) -> dict[str, Any]:
    """Return the ratio of ticks that draft and verify in turn to those of the same round that always do, or never."""
    always, never = (_of(measured.runs, name, batch, length) for length in (k, 0))
    ratios = [
        pair / (drafting.tick_seconds + plain.tick_seconds)
        for pair, drafting, plain in zip(pairs, always, never, strict=True)
    ]
    return {"drafter": name, "batch": batch, "draft_tokens": k, "pair_over_steady_pair": spread(ratios)}


def _sync(measured: Measured, drafter: str) -> dict[str, Any]:
    runs = [run for run in measured.syncs if run["arm"] == drafter]
    requantize_s, reload_s = ([run[f"{name}_seconds"] for run in runs] for name in ("requantize", "plain_reload"))
    load_s = [run["weight_sync_seconds"] - run["requantize_seconds"] for run in runs]
    return {
        "requantize_seconds": spread(requantize_s),
        "weight_load_seconds": spread(load_s),
        "plain_reload_seconds": spread(reload_s),
        "requantize_over_load": spread([ours / load for ours, load in zip(requantize_s, load_s, strict=True)]),
        "requantize_over_plain_reload": spread(
            [ours / whole for ours, whole in zip(requantize_s, reload_s, strict=True)]
        ),
    }


def _memory(plan: DrafterPlan, memory: Mapping[str, int]) -> dict[str, Any]:
    shape = read_model_shape(plan.model)
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
    """Return lines for a terminal, of what `summarize` returned."""
    return "\n".join(
        (
            _plain_table(summary["plain"], summary["baseline"]),
            _drafting_table(summary["drafting"]),
            _headline_table(summary["headline"], summary["memory"]),
            _switching_table(summary["switching"]),
            _sync_table(summary["weight_sync"]),
        )
    )


def _plain_table(rows: Sequence[Mapping[str, Any]], baseline: Mapping[str, str]) -> str:
    lines = [["plain (* baseline)", "batch", "step ms", "tokens/s"]]
    for row in rows:
        batch, speed = str(row["batch"]), f"{row['tokens_per_second']['median']:.1f}"
        mark = " *" if baseline[batch] == row["arm"] else ""
        lines.append([row["arm"] + mark, batch, _milliseconds(row["step_seconds"]), speed])
    return aligned(lines)


def _drafting_table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["drafter", "batch", "k", "draft step ms", "verify ms", "r", "verify/plain", "accepted", "over plain", ""]
    lines = [header]
    for row in rows:
        passes = ["-", _milliseconds(row["tick_seconds"]), "-", _ratio(row["tick_over_plain"]), "-"]
        if row["draft_tokens"]:
            seconds = (_milliseconds(row[name]) for name in ("draft_step_seconds", "verify_seconds"))
            ratios = (_ratio(row[name]) for name in ("draft_over_plain", "verify_over_plain"))
            passes = [*seconds, *ratios, f"{row['mean_accepted_length']['median']:.2f}"]
        mark = "slower" if row["speedup"]["median"] < 1.0 else ""
        lines.append([*_place(row), *passes, _ratio(row["speedup"]), mark])
    return aligned(lines, left=(0, len(header) - 1))


def _headline_table(rows: Sequence[Mapping[str, Any]], memory: Mapping[str, Any]) -> str:
    header = ["drafter", "batch", "at k", "r", "byte ratio", "verify/plain", "best k", "over plain"]
    lines = [[*header, "drafter/policy bytes"]]
    for row in rows:
        byte_ratio, memory_ratio = (f"{memory[row['drafter']][name]:.3f}" for name in ("byte_ratio", "memory_ratio"))
        at_k = [_ratio(row["draft_over_plain"]), byte_ratio, _ratio(row["verify_over_plain"])]
        lines.append([*_place(row), *at_k, str(row["best_draft_tokens"]), _ratio(row["best_speedup"]), memory_ratio])
    return aligned(lines)


def _switching_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [["draft tokens in turn", "batch", "two ticks over two steady ones"]]
    for row in rows:
        drafter, batch, k = _place(row)
        lines.append([f"{drafter}: {k}, 0", batch, _ratio(row["pair_over_steady_pair"])])
    return aligned(lines, left=(0, 1, 2))


def _sync_table(syncs: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [["drafter", "requantize ms", "load ms", "plain reload ms", "of load", "of plain reload"]]
    for name, sync in syncs.items():
        seconds = [sync[key] for key in ("requantize_seconds", "weight_load_seconds", "plain_reload_seconds")]
        ratios = [sync[key] for key in ("requantize_over_load", "requantize_over_plain_reload")]
        lines.append([name, *map(_milliseconds, seconds), *map(_ratio, ratios)])
    return aligned(lines)


def _place(row: Mapping[str, Any]) -> list[str]:
    return [row["drafter"], str(row["batch"]), str(row["draft_tokens"])]


def _milliseconds(values: Mapping[str, float]) -> str:
    return bracketed(values, digits=2, factor=1e3)


def _ratio(values: Mapping[str, float]) -> str:
    return bracketed(values, digits=3)


def draw_parts(drafting: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the picture of where ticks go: a bar for each row of `drafting` in what `summarize` returned."""
    pyplot = require_matplotlib()
    labels = [f"{row['drafter']}, batch {row['batch']}, k = {row['draft_tokens']}" for row in drafting]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.3 * len(labels)), layout="constrained")
    left = [0.0] * len(labels)
    for part in dict.fromkeys(part for row in drafting for part in row["part_seconds"]):
        widths = [1e3 * row["part_seconds"].get(part, 0.0) for row in drafting]
        axes.barh(labels, widths, left=left, label=part.replace("_", " "))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of a tick")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
