"""The long tail: how many requests ran at each moment of a rollout, and how many tokens were drafted for each."""

from collections.abc import Sequence

import plotly.graph_objects as go

from efficient_rollout.dashboards import figures
from efficient_rollout.dashboards.lanes import lanes_key, lanes_panel
from efficient_rollout.dashboards.section import Panel, Section, missing
from efficient_rollout.metrics.rollout_record import StepTimelines
from efficient_rollout.metrics.timeline import (
    FIRST_LENGTH,
    START,
    TAIL_SHARE,
    Bin,
    busy_seconds,
    mean_requests,
    seconds_by_length,
)
from efficient_rollout.training_runs.run import Run

_QUESTION = "What does the long tail look like?"
_MOST_PANELS = 3


def tail_section(own: Run) -> Section:
    """Show the slowest engine's rollout, and the responses, in the first, a middle and the last sampled step."""
    if not any(item.engines for item in own.timelines.values()):
        gap = missing(
            "Requests over time",
            because="Engines record timelines of sampled steps while drafting is enabled; this run has none.",
        )
        return Section("tail", _QUESTION, "Cannot tell: this run holds no timeline.", [gap])
    sampled = sorted(step for step, item in own.timelines.items() if item.engines)
    chosen = sorted({sampled[0], sampled[len(sampled) // 2], sampled[-1]})[-_MOST_PANELS:]
    panels = [draw(own.timelines[step]) for step in chosen for draw in (_panel, lanes_panel)]
    return Section("tail", _QUESTION, _answer(own.timelines[chosen[-1]]), panels)


def _answer(timelines: StepTimelines) -> str:
    bins = timelines.engines[0]
    busy = sum(busy_seconds(one) for one in bins)
    if busy <= 0.0:
        return f"Cannot tell: the timeline of step {timelines.step} holds no time."
    most = max(mean_requests(one) for one in bins)
    tail = sum(busy_seconds(one) for one in bins if mean_requests(one) <= TAIL_SHARE * most)
    drafting = 1.0 - seconds_by_length(bins)[0] / busy
    return (
        f"In step {timelines.step}, {tail / busy:.0%} of the slowest engine's {busy:.3g} s went by with a quarter or "
        f"less of the {most:.0f} requests it had at most; it drafted in {drafting:.0%} of the time."
    )


def _panel(timelines: StepTimelines) -> Panel:
    bins = timelines.engines[0]
    drawn = figures.figure(x_title=figures.ENGINE_SECONDS, y_title="running requests")
    for length, seconds in enumerate(seconds_by_length(bins)):
        if seconds > 0.0:
            _add_length(drawn, bins, length, seconds)
    drawn.update_xaxes(range=figures.whole_axis(timelines.end_s))
    drawn.update_layout(barmode="overlay", bargap=0, legend={"traceorder": "normal"})
    title = f"Step {timelines.step}: running requests over time, by draft length k"
    engine = f"The one of {timelines.num_engines} engines that ran longest. " if timelines.num_engines > 1 else ""
    note = (
        f"{engine}Ticks are summed into at most a few hundred bars, a bar for each k in each; k = 0 is plain decoding. "
        "A click shows the responses that ran then."
    )
    return Panel(title, drawn, note, leads_to=lanes_key(timelines.step))


def _add_length(drawn: go.Figure, bins: Sequence[Bin], length: int, seconds: float) -> None:
    middles, widths, heights = [], [], []
    for one in bins:
        at_lengths = one[FIRST_LENGTH:]
        if length < len(at_lengths) and at_lengths[length] > 0.0:
            before, width = sum(at_lengths[:length]), at_lengths[length]
            middles.append(one[START] + before + width / 2)
            widths.append(width)
            heights.append(mean_requests(one))
    drawn.add_bar(
        x=middles,
        y=heights,
        width=widths,
        name=f"k = {length} ({seconds:.3g} s)",
        marker={"color": figures.LENGTH_COLOURS[min(length, len(figures.LENGTH_COLOURS) - 1)], "line": {"width": 0}},
        showlegend=True,
        hovertemplate="%{x:.2f} s: %{y:.1f} requests",
    )
