"""Tables in a terminal. In every one of them brackets mean the same: `median [smallest, largest]` over the rounds."""

from collections.abc import Collection, Mapping, Sequence
from statistics import median


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return what brackets show, as JSON types.

    Args:
        values: One per round, at least one.

    Returns:
        `median`, `min` and `max`.
    """
    return {"median": median(values), "min": min(values), "max": max(values)}


def bracketed(values: Mapping[str, float], *, digits: int, factor: float = 1.0) -> str:
    """Return `median [smallest, largest]`.

    Args:
        values: From `spread`.
        digits: Behind the decimal point.
        factor: Of every number, for another unit.
    """
    middle, least, most = (f"{values[name] * factor:.{digits}f}" for name in ("median", "min", "max"))
    return f"{middle} [{least}, {most}]"


def aligned(lines: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Return lines of text in columns.

    Args:
        lines: Cells, titles among them; as many in each.
        left: Columns of words; the others are numbers and end under one another.
    """
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]

    def padded(column: int, cell: str) -> str:
        return cell.ljust(widths[column]) if column in left else cell.rjust(widths[column])

    return "".join(
        "  ".join(padded(column, cell) for column, cell in enumerate(line)).rstrip() + "\n" for line in lines
    )
