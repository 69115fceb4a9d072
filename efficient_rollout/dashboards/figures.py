"""Figures of this page's one look: few colours, units on the axes, and no more points than a screen can show."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from efficient_rollout.metrics import names
from efficient_rollout.training_runs.run import Values

MAX_POINTS, MAX_BARS = 400, 60
OWN_COLOUR, BASELINE_COLOUR = "#2f7ed8", "#e07b28"
# Told apart by those who see red and green alike too, and on white as well as on black.
PALETTE = (OWN_COLOUR, BASELINE_COLOUR, "#1fa187", "#b45cc4", "#c9a227", "#d1495b", "#5b8c5a", "#7d7aa8", "#8c8c8c")
# Draft lengths from plain decoding, in grey, to long ones; the last colour is for all that are longer.
LENGTH_COLOURS = ("#9a9a9a", "#b7d4f0", "#7fb2e5", "#2f7ed8", "#1c5aa3", "#c9a227", "#e07b28", "#d1495b", "#b45cc4")
ENGINE_SECONDS = "time since the first request (s)"
_HEIGHT, _TICK_PIXELS = 340, 11


@dataclass(frozen=True, slots=True)
class Thinned:
    """Holds means over as many neighbouring steps as it takes to have few enough of them.

    Attributes:
        steps: The first step of each group.
        values: By label, a group's mean of the numbers there are, not a number where there are none.
        group: Steps in a group; 1 is every step.
    """

    steps: list[int]
    values: Mapping[str, Values]
    group: int


def thinned(steps: Sequence[int], values: Mapping[str, Values], *, limit: int = MAX_POINTS) -> Thinned:
    """Return at most `limit` groups of steps."""
    group = max(1, -(-len(steps) // limit))
    return Thinned(list(steps[::group]), {label: _means(series, group) for label, series in values.items()}, group)


def _means(series: Values, group: int) -> Values:
    parts = [series[start : start + group] for start in range(0, len(series), group)]
    finite = [part[np.isfinite(part)] for part in parts]
    return np.array([part.mean() if part.size else np.nan for part in finite])


def unit_of(metric: str) -> str:
    """Return a metric's unit, for an axis."""
    return names.declared(metric).unit


def label(text: str) -> str:
    """Return text from a file, for a figure: plotly takes some HTML in labels for markup."""
    return html.escape(text, quote=False)


def figure(*, x_title: str, y_title: str) -> go.Figure:
    """Return an empty figure. Colours of text and grid are the page's own, as they follow its light or dark scheme."""
    drawn = go.Figure()
    drawn.update_layout(
        template="none",
        height=_HEIGHT,
        margin={"l": 56, "r": 12, "t": 12, "b": 46},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": _TICK_PIXELS},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "xanchor": "left"},
        hovermode="closest",
        dragmode=False,
    )
    drawn.update_xaxes(title=x_title, showgrid=False, zeroline=False, automargin=True, fixedrange=True)
    drawn.update_yaxes(
        title=y_title, zeroline=False, automargin=True, fixedrange=True, rangemode="tozero", exponentformat="e"
    )
    return drawn


def whole_axis(end: float) -> list[float]:
    """Return the range of an axis from 0 to an end that is seen: the same in figures that are compared."""
    return [0.0, 1.02 * end]


def step_axis(drawn: go.Figure, steps: Sequence[int]) -> None:
    """Put the ticks at whole steps, however few there are."""
    if len(steps) <= 12:
        drawn.update_xaxes(tickmode="array", tickvals=list(steps), ticktext=[str(step) for step in steps])
    else:
        drawn.update_xaxes(tickformat="d")


def lines(
    steps: Sequence[int],
    values: Mapping[str, Values],
    *,
    y_title: str,
    unit: str,
    from_zero: bool = True,
    are_apart: bool = False,
) -> tuple[go.Figure, str]:
    """Draw a line for each label over the steps, and return a sentence on the thinning, empty where there is none.

    Args:
        steps: Of the values. Where some are missing the lines are broken, unless they are apart.
        values: By label.
        y_title: Of the axis.
        unit: Of a value, beside it.
        from_zero: Whether the axis shows 0.
        are_apart: The steps are some, as where every tenth is measured, and lines go from one to the next.
    """
    drawn = figure(x_title="training step", y_title=y_title)
    few = thinned(steps, values) if are_apart else thinned(*_with_gaps(steps, values))
    for index, (name, series) in enumerate(few.values.items()):
        drawn.add_scatter(
            x=few.steps,
            y=series,
            name=label(name),
            mode="lines+markers" if len(few.steps) <= 60 or _has_lone_points(series) else "lines",
            line={"color": PALETTE[index % len(PALETTE)], "width": 1.8},
            marker={"size": 5},
            showlegend=True,
            hovertemplate=f"step %{{x}}: %{{y:.4g}} {label(unit)}",
        )
    if not from_zero:
        drawn.update_yaxes(rangemode="normal")
    step_axis(drawn, steps)
    return drawn, thinning_note(few.group)


def _with_gaps(steps: Sequence[int], values: Mapping[str, Values]) -> tuple[list[int], Mapping[str, Values]]:
    """Return the same with a step that is no number wherever steps are missing: no line is drawn across."""
    known = np.array(steps)
    behind = np.flatnonzero(np.diff(known) > 1) + 1
    holes = known[behind - 1] + 1
    return [int(step) for step in np.insert(known, behind, holes)], {
        name: np.insert(series.astype(float), behind, np.nan) for name, series in values.items()
    }


def _has_lone_points(series: Values) -> bool:
    """Tell whether a number stands between two that are missing: a line alone would not show it."""
    known = np.concatenate([[False], np.isfinite(series), [False]])
    return bool((known[1:-1] & ~known[:-2] & ~known[2:]).any())


def stacked_bars(
    steps: Sequence[int], values: Mapping[str, Values], *, y_title: str, unit: str
) -> tuple[go.Figure, str]:
    """Draw a bar for each step, or group of them, a part for each label; return a sentence on the thinning too."""
    drawn = figure(x_title="training step", y_title=y_title)
    few = thinned(steps, values, limit=MAX_BARS)
    for index, (name, series) in enumerate(few.values.items()):
        drawn.add_bar(
            x=few.steps,
            y=series,
            name=label(name),
            marker={"color": PALETTE[index % len(PALETTE)], "line": {"width": 0}},
            showlegend=True,
            hovertemplate=f"step %{{x}}: %{{y:.4g}} {label(unit)}",
        )
    drawn.update_layout(barmode="stack", bargap=0.25, legend={"traceorder": "normal"})
    step_axis(drawn, few.steps)
    return drawn, thinning_note(few.group)


def thinning_note(group: int) -> str:
    """Return what the reader must know of points that stand for several steps."""
    return "" if group == 1 else f"Each point is the mean of {group} neighbouring steps."
