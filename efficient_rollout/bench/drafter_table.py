"""What `bench drafter` prints: every row, those that lose marked."""

from collections.abc import Mapping, Sequence
from typing import Any

from efficient_rollout.tables import aligned, bracketed


def table(summary: Mapping[str, Any]) -> str:
    """Return lines for a terminal.

    Args:
        summary: From `drafter_report.summarize`.
    """
    parts = [_plain(summary), _drafting(summary["drafting"]), _headline(summary["headline"], summary["memory"])]
    parts += [_switching(summary["switching"]), _weight_sync(summary["weight_sync"])]
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
    header = [
        "drafter",
        "batch",
        "at k",
        "r",
        "byte ratio",
        "verify/plain",
        "best k",
        "over plain",
        "drafter/policy bytes",
    ]
    rows = []
    for row in headline:
        held = memory[row["drafter"]]
        rows.append(
            [
                row["drafter"],
                str(row["batch"]),
                str(row["draft_tokens"]),
                _ratio(row["draft_over_plain"]),
                f"{held['byte_ratio']:.3f}",
                _ratio(row["verify_over_plain"]),
                str(row["best_draft_tokens"]),
                _ratio(row["best_speedup"]),
                f"{held['memory_ratio']:.3f}",
            ]
        )
    return aligned([header, *rows])


def _switching(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["draft tokens in turn", "batch", "two ticks over two steady ones"]
    lines = [
        [f"{row['drafter']}: {row['draft_tokens']}, 0", str(row["batch"]), _ratio(row["pair_over_steady_pair"])]
        for row in rows
    ]
    return aligned([header, *lines], left=(0, 1, len(header) - 1))


def _weight_sync(syncs: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            name,
            _milliseconds(sync["requantize_seconds"]),
            _milliseconds(sync["weight_load_seconds"]),
            _milliseconds(sync["plain_reload_seconds"]),
            _ratio(sync["requantize_over_load"]),
            _ratio(sync["requantize_over_plain_reload"]),
        ]
        for name, sync in syncs.items()
    ]
    header = ["drafter", "requantize ms", "load ms", "plain reload ms", "of load", "of plain reload"]
    return aligned([header, *rows])


def acceptance_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rates by position: of the drafts whose predecessors were all accepted, the share that was too.

    Args:
        rows: From `acceptance.measure_acceptance`.
    """
    header = [
        "checkpoint",
        "drafter",
        "temperature",
        "response tokens",
        "responses",
        "drafts",
        "accepted",
        "by position",
    ]
    lines = [
        [
            row["checkpoint"],
            row["drafter"],
            f"{row['temperature']:g}",
            f"{row['from_token']}-{row['to_token']}",
            str(row["num_responses"]),
            str(row["num_verify_passes"]),
            "-" if row["mean_accepted_length"] is None else f"{row['mean_accepted_length']:.2f}",
            " ".join("-" if rate is None else f"{rate:.3f}" for rate in row["acceptance_rate"]) or "-",
        ]
        for row in rows
    ]
    return aligned([header, *lines], left=(0, 1, len(header) - 1))


def _milliseconds(values: Mapping[str, float]) -> str:
    return bracketed(values, digits=2, factor=1e3)


def _ratio(values: Mapping[str, float]) -> str:
    return bracketed(values, digits=3)
