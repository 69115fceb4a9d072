"""Is an engine sick? Faults, drafters that do not follow the policy, and how far engines are apart."""

import numpy as np

from efficient_rollout.dashboards import figures
from efficient_rollout.dashboards.section import Panel, Section, missing
from efficient_rollout.metrics import names
from efficient_rollout.training_runs.run import Run

_COUNTS = {
    "engines that reported": names.NUM_ENGINES,
    "faults of a drafter": names.DRAFTER_FAULTS,
    "stale drafters": names.STALE_DRAFTER,
}


# Of `names.PER_ENGINE`, those that a reader sees a sick engine in at a glance; the others stand in the file.
_SPREAD = {
    "Generated tokens per second of an engine": names.TOKENS_PER_SECOND,
    "Mean accepted length of an engine": names.MEAN_ACCEPTED_LENGTH,
}
_PREFIXES = {
    "smallest engine": names.ENGINE_MIN_PREFIX,
    "mean": names.ENGINE_MEAN_PREFIX,
    "largest engine": names.ENGINE_MAX_PREFIX,
}


def health_section(own: Run) -> Section:
    """Show counts by step, and the smallest and the largest engine beside the mean where there are several."""
    panels = [_counts(own)]
    if np.nanmax(np.append(own.values(names.NUM_ENGINES), 1.0)) > 1:
        panels += [_spread(own, title, quantity) for title, quantity in _SPREAD.items()]
    metrics = (*_COUNTS.values(), *_SPREAD.values())
    return Section("engines", "Is an engine sick?", _answer(own), panels, metrics)


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
    apart = _apart(own)
    if not signs:
        return f"No: no fault, no stale drafter, and the same number of engines in every step.{proof(own)}{apart}"
    return f"Yes: {'; '.join(signs)}. The run's log says what happened.{proof(own)}{apart}"


def proof(own: Run) -> str:
    """Tell what weight syncs have shown of the weights; return nothing where no step reports it."""
    shares, sent = own.values(names.PROVEN_WEIGHT_SHARE), own.values(names.WEIGHTS_AS_SENT)
    num_syncs = int(np.isfinite(shares).sum())
    if not num_syncs:
        return ""
    return (
        f" The engines hold what came in {num_syncs} of {len(own.steps)} steps, looked at in turn for at least "
        f"{100 * np.nanmin(shares):.0f} % of the weights; in {int(np.nansum(sent))} it came with the checksums of the "
        f"trainer. The last: {own.values(names.WEIGHTS_CHECKSUM)[np.isfinite(shares)][-1]:.0f}."
    )


def _apart(own: Run) -> str:
    """Tell how far the slowest and the fastest engine are apart; return nothing with one engine."""
    smallest, largest = (
        own.values(names.over_engines(prefix, names.TOKENS_PER_SECOND))
        for prefix in (names.ENGINE_MIN_PREFIX, names.ENGINE_MAX_PREFIX)
    )
    ratios = smallest[largest > 0] / largest[largest > 0]
    ratios = ratios[np.isfinite(ratios)]
    if not ratios.size:
        return ""
    return f" In the median step the slowest engine gives {np.median(ratios):.2f} of the fastest one's tokens a second."


def _spread(own: Run, title: str, quantity: str) -> Panel:
    series = own.reported({label: names.over_engines(prefix, quantity) for label, prefix in _PREFIXES.items()})
    if not series:
        return missing(title, because="No step reports it of two engines.")
    unit = figures.unit_of(quantity)
    drawn, note = figures.lines(own.steps, series, y_title=unit, unit=unit)
    return Panel(title, drawn, note)


def _counts(own: Run) -> Panel:
    title = "Engines and their faults"
    series = own.reported(_COUNTS)
    if not series:
        return missing(title, because="No step reports its engines.")
    drawn, note = figures.lines(own.steps, series, y_title=figures.unit_of(names.NUM_ENGINES), unit="")
    said = "The metrics are sums over engines: which engine it was stands in the log."
    return Panel(title, drawn, f"{said} {note}".strip())
