"""Is the controller right? What it expected of drafting, what the clock said, and why it decided as it did."""

import numpy as np

from efficient_rollout.dashboards import figures
from efficient_rollout.dashboards.section import Panel, Section, missing
from efficient_rollout.metrics import names
from efficient_rollout.training_runs.run import Run

_METRICS = (names.PREDICTED_SPEEDUP, names.MEASURED_SPEEDUP, names.REASON_SHARE_PREFIX, names.SPECULATIVE_TICK_SHARE)
_MOST_REASONS = 8


def decisions_section(own: Run) -> Section:
    """Show predicted against measured speed-up, and the shares of the reasons."""
    panels = [_speedups(own), _reasons(own)]
    return Section("controller", "Is the controller right?", _answer(own), panels, _METRICS)


def _answer(own: Run) -> str:
    predicted, measured = own.values(names.PREDICTED_SPEEDUP), own.values(names.MEASURED_SPEEDUP)
    both = (predicted > 0.0) & (measured > 0.0)
    if not both.any():
        return (
            "This run's rule predicts nothing (only cost_model does), or no step drafted: there is nothing to compare."
        )
    error = float(np.median(np.abs(predicted[both] / measured[both] - 1.0)))
    lost = int((measured[both] < 1.0).sum())
    return (
        f"Drafting ticks were {np.median(measured[both]):.2f} times as fast as plain decoding in the median step, and "
        f"{np.median(predicted[both]):.2f} was predicted; the prediction is off by {error:.0%} in the median, and "
        f"drafting lost time in {lost} of {int(both.sum())} steps."
    )


def _speedups(own: Run) -> Panel:
    title = "Speed-up of ticks that drafted"
    shown = {"predicted": names.PREDICTED_SPEEDUP, "measured": names.MEASURED_SPEEDUP}
    series = {label: own.values(metric) for label, metric in shown.items() if own.has(metric)}
    if not series:
        return missing(title, because="No step reports a predicted speed-up.")
    y_title = f"times as fast as plain decoding ({figures.unit_of(names.MEASURED_SPEEDUP)})"
    drawn, note = figures.lines(own.steps, series, y_title=y_title, unit="times as fast", from_zero=False)
    drawn.add_hline(y=1.0, line={"dash": "dot", "color": "#8c8c8c", "width": 1.5})
    return Panel(title, drawn, f"Below the dotted line, drafting loses time. {note}".strip())


def _reasons(own: Run) -> Panel:
    title = "Why the controller decided as it did"
    found = own.names_under(names.REASON_SHARE_PREFIX)
    if not found:
        return missing(title, because="No step reports the controller's reasons: drafting was off.")
    # A reason that a step does not report is one it had no tick for.
    shares = {name.removeprefix(names.REASON_SHARE_PREFIX): np.nan_to_num(own.values(name)) for name in found}
    ordered = sorted(shares, key=lambda reason: -float(shares[reason].sum()))
    series = {reason: shares[reason] for reason in ordered[:_MOST_REASONS]}
    if ordered[_MOST_REASONS:]:
        series["others"] = np.sum([shares[reason] for reason in ordered[_MOST_REASONS:]], axis=0)
    y_title = f"share of ticks ({figures.unit_of(names.REASON_SHARE_PREFIX)})"
    drawn, note = figures.stacked_bars(own.steps, series, y_title=y_title, unit="of ticks")
    drawn.update_yaxes(tickformat=".0%", range=[0, 1])
    return Panel(title, drawn, note)
