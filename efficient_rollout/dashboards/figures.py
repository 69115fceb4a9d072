"""Questions and figures of the page's one look: few colours, units on axes, no more points than a screen shows."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from efficient_rollout.metrics import names
from efficient_rollout.training_runs.run import Values

MAX_POINTS, MAX_BARS = 400, 60
OWN_COLOUR, BASELINE_COLOUR, GREY = "#2f7ed8", "#e07b28", "#8c8c8c"
# Told apart by those who see red and green alike too, and on white as well as on black.
PALETTE = (OWN_COLOUR, BASELINE_COLOUR, "#1fa187", "#b45cc4", "#c9a227", "#d1495b", "#5b8c5a", "#7d7aa8", GREY)
# Draft lengths from plain decoding, in grey, to long ones; the last colour is for all that are longer.
LENGTH_COLOURS = ("#9a9a9a", "#b7d4f0", "#7fb2e5", "#2f7ed8", "#1c5aa3", "#c9a227", "#e07b28", "#d1495b", "#b45cc4")
DOTTED = {"dash": "dot", "color": GREY, "width": 1.5}
_HEIGHT, _TICK_PIXELS = 340, 11


@dataclass(frozen=True, slots=True)
class Panel:
    """Holds one figure with a note below it; where there is nothing to draw, the note says why.

    `key` is its name in links, and `leads_to` that of the panel that a click on the figure leads to.
    """

    title: str
    figure: go.Figure | None
    note: str = ""
    key: str = ""
    leads_to: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """Answers one question in a sentence or two, with figures, and perhaps a table, whose first row are titles.

    `key` is its name in links; `metrics` those that the figures show, for the list of meanings.
    """

    key: str
    question: str
    answer: str
    panels: Sequence[Panel]
    metrics: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()

    @property
    def meanings(self) -> list[tuple[str, str, str]]:
        """Name without prefix, unit and meaning of each metric of this package; veRL documents its own."""
        described = [names.declared(name) for name in self.metrics if names.is_declared(name)]
        return [(metric.name.removeprefix(names.PREFIX), metric.unit, metric.meaning) for metric in described]


def line_panel(
    title: str,
    steps: Sequence[int],
    values: Mapping[str, Values],
    *,
    y_title: str,
    unit: str,
    because: str,
    said: str = "",
    from_zero: bool = True,
) -> Panel:
    """Return a panel of `lines` with a note, or a gap because of which there is nothing to draw."""
    if not values:
        return Panel(title, None, because)
    drawn, note = lines(steps, values, y_title=y_title, unit=unit, from_zero=from_zero)
    return Panel(title, drawn, f"{said} {note}".strip())


def thinned(
    steps: Sequence[int], values: Mapping[str, Values], *, limit: int = MAX_POINTS
) -> tuple[list[int], dict[str, Values], str]:
    """Return the first step of each of at most `limit` groups of neighbours, the groups' means, and a note on them."""
    group = max(1, -(-len(steps) // limit))
    note = "" if group == 1 else f"Each point is the mean of {group} neighbouring steps."
    return list(steps[::group]), {name: _means(series, group) for name, series in values.items()}, note


def _means(series: Values, group: int) -> Values:
    parts = [series[start : start + group] for start in range(0, len(series), group)]
    finite = [part[np.isfinite(part)] for part in parts]
    return np.array([part.mean() if part.size else np.nan for part in finite])


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

    Where steps are missing the lines are broken, unless they are apart, as where every tenth is measured.
    """
    drawn = figure(x_title="training step", y_title=y_title)
    x, few, note = thinned(steps, values) if are_apart else thinned(*_with_gaps(steps, values))
    for (name, series), colour in zip(few.items(), _colours(few), strict=True):
        with_dots = len(x) <= 60 or _has_lone_points(series)
        drawn.add_scatter(
            x=x, y=series, mode="lines+markers" if with_dots else "lines", line={"color": colour, "width": 1.8},
            marker={"size": 5}, **_named(name, unit),
        )  # fmt: skip
    if not from_zero:
        drawn.update_yaxes(rangemode="normal")
    step_axis(drawn, steps)
    return drawn, note


def stacked_bars(
    steps: Sequence[int], values: Mapping[str, Values], *, y_title: str, unit: str
) -> tuple[go.Figure, str]:
    """Draw a bar for each step, or group of them, a part for each label; return a sentence on the thinning too."""
    drawn = figure(x_title="training step", y_title=y_title)
    x, few, note = thinned(steps, values, limit=MAX_BARS)
    for (name, series), colour in zip(few.items(), _colours(few), strict=True):
        drawn.add_bar(x=x, y=series, marker={"color": colour, "line": {"width": 0}}, **_named(name, unit))
    drawn.update_layout(barmode="stack", bargap=0.25, legend={"traceorder": "normal"})
    step_axis(drawn, x)
    return drawn, note


def _colours(values: Mapping[str, Values]) -> list[str]:
    return [PALETTE[index % len(PALETTE)] for index in range(len(values))]


def _named(name: str, unit: str) -> dict[str, Any]:
    return {"name": label(name), "showlegend": True, "hovertemplate": f"step %{{x}}: %{{y:.4g}} {label(unit)}"}


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
