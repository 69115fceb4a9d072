"""Is an engine sick? Faults, drafters that do not follow the policy, and engines that reported."""

import numpy as np

from efficient_rollout.dashboards import figures
from efficient_rollout.dashboards.run import Run
from efficient_rollout.dashboards.section import Panel, Section, missing
from efficient_rollout.metrics import names

_COUNTS = {
    "engines that reported": names.NUM_ENGINES,
    "faults of a drafter": names.DRAFTER_FAULTS,
    "stale drafters": names.STALE_DRAFTER,
}


def health_section(own: Run) -> Section:
    """Counts by step."""
    return Section("engines", "Is an engine sick?", _answer(own), [_counts(own)], tuple(_COUNTS.values()))


def _answer(own: Run) -> str:
    if not own.reported(_COUNTS):
        return "Cannot tell: no step reports its engines."
    signs = []
    faults, stale = own.values(names.DRAFTER_FAULTS), own.values(names.STALE_DRAFTER)
    if np.nansum(faults) > 0:
        first = own.steps[int(np.flatnonzero(np.nan_to_num(faults) > 0)[0])]
        signs.append(f"faults that turned a drafter off: {np.nansum(faults):.0f}, the first in step {first}")
    if np.nansum(stale) > 0:
        num_steps = int((np.nan_to_num(stale) > 0).sum())
        signs.append(f"a drafter did not follow the policy in {num_steps} of {len(own.steps)} steps")
    engines = own.values(names.NUM_ENGINES)
    if np.isfinite(engines).any() and np.nanmin(engines) < np.nanmax(engines):
        signs.append(f"between {np.nanmin(engines):.0f} and {np.nanmax(engines):.0f} engines reported")
    if not signs:
        return "No: no fault, no stale drafter, and the same number of engines in every step."
    return f"Yes: {'; '.join(signs)}. The run's log says what happened."


def _counts(own: Run) -> Panel:
    title = "Engines and their faults"
    series = own.reported(_COUNTS)
    if not series:
        return missing(title, because="No step reports its engines.")
    drawn, note = figures.lines(own.steps, series, y_title=figures.unit_of(names.NUM_ENGINES), unit="")
    said = "The metrics are sums over engines: which engine it was stands in the log."
    return Panel(title, drawn, f"{said} {note}".strip())
