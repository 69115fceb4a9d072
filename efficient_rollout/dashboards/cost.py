"""What does it cost? Seconds of syncing, requantizing and drafting, and the drafter's memory."""

import numpy as np

from efficient_rollout.dashboards import figures
from efficient_rollout.dashboards.section import Panel, Section, missing
from efficient_rollout.metrics import names
from efficient_rollout.training_runs.run import Run, Values

_SECONDS = {
    "weight sync": names.WEIGHT_SYNC_SECONDS,
    "requantizing in it": names.REQUANTIZE_SECONDS,
}
_BYTES_PER_MIB = 2**20


def cost_section(own: Run) -> Section:
    """Show seconds by step, and bytes."""
    panels = [_seconds(own), _bytes(own)]
    metrics = (*_SECONDS.values(), names.DRAFT_SECONDS, names.DRAFTER_BYTES)
    return Section("cost", "What does it cost?", _answer(own), panels, metrics)


def _by_step(own: Run) -> dict[str, Values]:
    """Return seconds of one engine.

    Those of drafting are reported as a sum over engines, which need not be as many always.
    """
    series = own.reported(_SECONDS)
    drafting = own.values(names.DRAFT_SECONDS) / np.maximum(1.0, own.values(names.NUM_ENGINES))
    return series | ({"drafting": drafting} if np.isfinite(drafting).any() else {})


def _answer(own: Run) -> str:
    told = [f"{label} takes {np.nanmedian(values):.3g} s" for label, values in _by_step(own).items()]
    size = own.values(names.DRAFTER_BYTES)
    memory = f" The drafter takes {np.nanmax(size) / _BYTES_PER_MIB:.3g} MiB." if np.isfinite(size).any() else ""
    if not told:
        return f"This run reports no seconds of syncing or drafting.{memory}"
    return f"In the median step {', '.join(told)}.{memory}"


def _seconds(own: Run) -> Panel:
    title = "Seconds a step"
    series = _by_step(own)
    if not series:
        return missing(title, because="No step reports them.")
    unit = figures.unit_of(names.WEIGHT_SYNC_SECONDS)
    drawn, note = figures.lines(own.steps, series, y_title=f"seconds of a step ({unit})", unit=unit)
    said = "Drafting is the mean over engines; the other two are the slowest engine's."
    return Panel(title, drawn, f"{said} {note}".strip())


def _bytes(own: Run) -> Panel:
    title = "Memory of the drafter's own weights"
    if not own.has(names.DRAFTER_BYTES):
        return missing(title, because="No step reports it.")
    series = {"largest engine": own.values(names.DRAFTER_BYTES) / _BYTES_PER_MIB}
    drawn, note = figures.lines(own.steps, series, y_title="memory (MiB)", unit="MiB")
    return Panel(title, drawn, note)
