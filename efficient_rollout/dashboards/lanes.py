"""The long tail: how many requests ran at each moment of a rollout, with how many drafts, and who waited for whom.

The last is a lane for each response of a step, from its start to its end, the last to end on top.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from efficient_rollout.dashboards import figures
from efficient_rollout.dashboards.figures import LENGTH_COLOURS, Panel, Section
from efficient_rollout.metrics.rollout_record import StepTimelines
from efficient_rollout.metrics.timeline import (
    ACCEPTED,
    DRAFTED,
    END,
    FIRST_LENGTH,
    NUM_TOKENS,
    PASSES,
    START,
    TAIL_SHARE,
    Bin,
    Lane,
    busy_seconds,
    mean_requests,
    parts_of,
    seconds_by_length,
)
from efficient_rollout.training_runs.run import Run

_QUESTION = "What does the long tail look like?"
_ENGINE_SECONDS = "time since the first request (s)"
# In pixels: of a row, of all rows, and of what is around them.
_MOST_OF_A_ROW, _LEAST_OF_ROWS, _MOST_OF_ROWS, _AROUND = 12.0, 240, 720, 80
# Of a row: a line without drafts; and one with drafts, of which none, some, or all were accepted.
_PLAIN, _ACCEPTED = 0.2, (0.4, 0.6, 0.8, 1.0)
# Stands for the width of a legend's entry.
_ENTRY = 0.0


def tail_section(own: Run) -> Section:
    """Show the slowest engine's rollout, and the responses, in the first, a middle and the last sampled step."""
    sampled = sorted(step for step, item in own.timelines.items() if item.engines)
    if not sampled:
        because = "Engines record timelines of sampled steps while drafting is enabled; this run has none."
        gap = Panel("Requests over time", None, because)
        return Section("tail", _QUESTION, "Cannot tell: this run holds no timeline.", [gap])
    chosen = [own.timelines[step] for step in sorted({sampled[0], sampled[len(sampled) // 2], sampled[-1]})]
    panels = [draw(timelines) for timelines in chosen for draw in (_requests_panel, lanes_panel)]
    return Section("tail", _QUESTION, _answer(chosen[-1]), panels)


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


def _lanes_key(step: int) -> str:
    return f"lanes-{step}"


def _whole_axis(drawn: go.Figure, timelines: StepTimelines) -> None:
    """Let both figures of a step have the same axis of time, with an end that is seen."""
    drawn.update_xaxes(range=[0.0, 1.02 * timelines.end_s])


def _requests_panel(timelines: StepTimelines) -> Panel:
    bins = timelines.engines[0]
    drawn = figures.figure(x_title=_ENGINE_SECONDS, y_title="running requests")
    for length, seconds in enumerate(seconds_by_length(bins)):
        if seconds > 0.0:
            drawn.add_bar(
                **_bars(bins, length), name=f"k = {length} ({seconds:.3g} s)", showlegend=True,
                marker={"color": LENGTH_COLOURS[min(length, len(LENGTH_COLOURS) - 1)], "line": {"width": 0}},
                hovertemplate="%{x:.2f} s: %{y:.1f} requests",
            )  # fmt: skip
    _whole_axis(drawn, timelines)
    drawn.update_layout(barmode="overlay", bargap=0, legend={"traceorder": "normal"})
    title = f"Step {timelines.step}: running requests over time, by draft length k"
    engine = f"The one of {timelines.num_engines} engines that ran longest. " if timelines.num_engines > 1 else ""
    note = (
        f"{engine}Ticks are summed into at most a few hundred bars, a bar for each k in each; k = 0 is plain decoding. "
        "A click shows the responses that ran then."
    )
    return Panel(title, drawn, note, leads_to=_lanes_key(timelines.step))


def _bars(bins: Sequence[Bin], length: int) -> dict[str, list[float]]:
    """Return the bars of a draft length: each lies behind those of shorter ones in its bin."""
    bars: dict[str, list[float]] = {"x": [], "width": [], "y": []}
    for one in bins:
        at_lengths = one[FIRST_LENGTH:]
        if length < len(at_lengths) and at_lengths[length] > 0.0:
            bars["x"].append(one[START] + sum(at_lengths[:length]) + at_lengths[length] / 2)
            bars["width"].append(at_lengths[length])
            bars["y"].append(mean_requests(one))
    return bars


def lanes_panel(timelines: StepTimelines) -> Panel:
    """Draw the lanes that are kept of a step, of all its engines."""
    title = f"Step {timelines.step}: who waits for whom, a line for each response"
    of_engine = [(lane, place) for place, lanes in enumerate(timelines.lanes, start=1) for lane in lanes]
    rows = sorted(of_engine, key=lambda row: -row[0][END])
    if not rows:
        return Panel(title, None, "No response of this step ended while its engine drafted.")
    drawn = figures.figure(x_title=_ENGINE_SECONDS, y_title="responses, the last to end on top")
    height = min(_MOST_OF_ROWS, max(_LEAST_OF_ROWS, _MOST_OF_A_ROW * len(rows)))
    width = 0.9 * min(_MOST_OF_A_ROW, height / len(rows))
    lanes = [lane for lane, _ in rows]
    _add_lanes(drawn, lanes, width)
    # Each lane's end tells its numbers.
    told = [[place, lane[START], lane[NUM_TOKENS], *_shares(lane)] for lane, place in rows]
    drawn.add_scatter(
        x=[lane[END] for lane in lanes], y=list(range(len(rows))), mode="markers", name="ends", showlegend=False,
        marker={"size": min(5.0, width), "color": LENGTH_COLOURS[0]}, customdata=told,
        hovertemplate="engine %{customdata[0]}, from %{customdata[1]:.2f} s to %{x:.2f} s: %{customdata[2]} tokens, "
        "drafting in %{customdata[3]:.0%} of the time, %{customdata[4]:.0%} of the drafts accepted<extra></extra>",
    )  # fmt: skip
    drawn.update_layout(height=int(height) + _AROUND)
    _whole_axis(drawn, timelines)
    drawn.update_yaxes(range=[len(rows) - 0.5, -0.5], rangemode="normal", showticklabels=False, showgrid=False)
    return Panel(title, drawn, _note(timelines, lanes), key=_lanes_key(timelines.step))


def _add_lanes(drawn: go.Figure, lanes: Sequence[Lane], width: float) -> None:
    """Draw one line of many pieces for each draft length and share that was accepted: a browser draws few lines."""
    x: dict[tuple[int, float], list[float | None]] = defaultdict(list)
    y: dict[tuple[int, float], list[int | None]] = defaultdict(list)
    for row, lane in enumerate(lanes):
        for start, end, length, share in _pieces(lane):
            x[length, share] += [start, end, None]
            y[length, share] += [row, row, None]
    for length in {length for length, _ in x}:
        # The legend's entry, as wide as drafts that are all accepted.
        x[length, _ENTRY], y[length, _ENTRY] = [None], [None]
    for length, share in sorted(x):
        longer = " or more" if length == len(LENGTH_COLOURS) - 1 else ""
        name = f"k = {length}{longer}" if length else "no drafts"
        whole = share or (max(_ACCEPTED) if length else _PLAIN)
        drawn.add_scatter(
            x=x[length, share], y=y[length, share], mode="lines", name=name, legendgroup=name, hoverinfo="skip",
            line={"color": LENGTH_COLOURS[length], "width": round(max(0.8, whole * width), 2)},
            showlegend=share == _ENTRY,
        )  # fmt: skip


def _pieces(lane: Lane) -> Iterator[tuple[float, float, int, float]]:
    """Yield start, end, draft length and width, a share of the row's: parts with drafts, and what lies between them."""
    at = lane[START]
    for part in parts_of(lane):
        if part[START] > at:
            yield at, part[START], 0, _PLAIN
        if part[PASSES] > 0 and part[DRAFTED] > 0:
            length = max(1, round(part[DRAFTED] / part[PASSES]))
            level = min(len(_ACCEPTED) - 1, int(len(_ACCEPTED) * part[ACCEPTED] / part[DRAFTED]))
            yield part[START], part[END], min(length, len(LENGTH_COLOURS) - 1), _ACCEPTED[level]
        at = max(at, part[END])
    if lane[END] > at:
        yield at, lane[END], 0, _PLAIN


def _shares(lane: Lane) -> tuple[float, float]:
    """Return the share of a response's time with drafts, and of its drafts that were accepted."""
    parts = list(parts_of(lane))
    drafted, seconds = sum(part[DRAFTED] for part in parts), lane[END] - lane[START]
    accepted = sum(part[ACCEPTED] for part in parts) / drafted if drafted > 0 else 0.0
    drafting = sum(part[END] - part[START] for part in parts) / seconds if seconds > 0 else 0.0
    return round(drafting, 3), round(accepted, 3)


def _note(timelines: StepTimelines, lanes: Sequence[Lane]) -> str:
    drafting, accepted = _shares(lanes[0])
    alone = lanes[0][END] - (lanes[1][END] if len(lanes) > 1 else lanes[0][START])
    last = (
        f"The last response to end {f'ran on alone for {alone:.3g} s; it ' if alone > 0.0 else ''}drafted in "
        f"{drafting:.0%} of its time, and {accepted:.0%} of its drafts were accepted."
    )
    some = ""
    if timelines.num_responses > len(lanes):
        some = (
            f" Drawn are {len(lanes)} of {timelines.num_responses} responses: those that ended last, and of the others "
            "some that stand evenly for all."
        )
    clocks = " Each engine counts from its own zero." if len(timelines.lanes) > 1 else ""
    return (
        f"{last} Thin grey is prefill and plain decoding; a colour is a draft length, and its line the thicker the "
        f"more was accepted. A point is a response's end.{some}{clocks}"
    )
