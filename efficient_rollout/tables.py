"""Tables in a terminal. In every one of them brackets mean the same: `median [smallest, largest]` over the rounds."""

from collections.abc import Collection, Mapping, Sequence
from statistics import median


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return what brackets show of values, one per round, at least one: `median`, `min` and `max`."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def bracketed(values: Mapping[str, float], *, digits: int, factor: float = 1.0) -> str:
    """Return `median [smallest, largest]` of a `spread`, every number times a factor, for another unit."""
    middle, least, most = (f"{values[name] * factor:.{digits}f}" for name in ("median", "min", "max"))
    return f"{middle} [{least}, {most}]"


def aligned(lines: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Return lines of cells, titles among them, in columns: words, which `left` names, and numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def padded(line: Sequence[str]) -> str:
        cells = enumerate(zip(line, widths, strict=True))
        return "  ".join(cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in cells).rstrip()

    return "".join(f"{padded(line)}\n" for line in lines)
