"""Who waits for whom: a lane for each response of a step, from its start to its end, the last to end on top."""

from collections import defaultdict
from collections.abc import Sequence

import plotly.graph_objects as go

from efficient_rollout.dashboards import figures
from efficient_rollout.dashboards.section import Panel, missing
from efficient_rollout.metrics.rollout_record import StepTimelines
from efficient_rollout.metrics.timeline import ACCEPTED, DRAFTED, END, NUM_TOKENS, PASSES, START, Lane, parts_of

# In pixels: of a row, of all rows, and of what is around them.
_MOST_OF_A_ROW, _LEAST_OF_ROWS, _MOST_OF_ROWS, _AROUND = 12.0, 240, 720, 80
# Of a row: a line without drafts; and one with drafts, of which none, some, or all were accepted.
_PLAIN, _ACCEPTED = 0.2, (0.4, 0.6, 0.8, 1.0)


def lanes_key(step: int) -> str:
    """Return the name of a step's lanes in links."""
    return f"lanes-{step}"


def lanes_panel(timelines: StepTimelines) -> Panel:
    """Draw the lanes that are kept of a step, of all its engines."""
    title = f"Step {timelines.step}: who waits for whom, a line for each response"
    of_engine = [(lane, place) for place, lanes in enumerate(timelines.lanes, start=1) for lane in lanes]
    rows = sorted(of_engine, key=lambda row: -row[0][END])
    if not rows:
        return missing(title, because="No response of this step ended while its engine drafted.")
    drawn = figures.figure(x_title=figures.ENGINE_SECONDS, y_title="responses, the last to end on top")
    height = min(_MOST_OF_ROWS, max(_LEAST_OF_ROWS, _MOST_OF_A_ROW * len(rows)))
    width = 0.9 * min(_MOST_OF_A_ROW, height / len(rows))
    lanes = [lane for lane, _ in rows]
    _add_plain(drawn, lanes, width)
    _add_drafting(drawn, lanes, width)
    _add_words(drawn, rows, width)
    drawn.update_layout(height=int(height) + _AROUND)
    drawn.update_xaxes(range=figures.whole_axis(timelines.end_s))
    drawn.update_yaxes(range=[len(rows) - 0.5, -0.5], rangemode="normal", showticklabels=False, showgrid=False)
    return Panel(title, drawn, _note(timelines, lanes), key=lanes_key(timelines.step))


def _add_plain(drawn: go.Figure, lanes: Sequence[Lane], width: float) -> None:
    """Draw what lies between the parts with drafts."""
    pieces = []
    for row, lane in enumerate(lanes):
        at = lane[START]
        for part in parts_of(lane):
            if part[START] > at:
                pieces.append((row, [at, part[START]]))
            at = max(at, part[END])
        if lane[END] > at:
            pieces.append((row, [at, lane[END]]))
    x, y = _line(pieces)
    _add_lines(drawn, x, y, name="no drafts", colour=figures.LENGTH_COLOURS[0], width=max(0.8, _PLAIN * width))


def _add_drafting(drawn: go.Figure, lanes: Sequence[Lane], width: float) -> None:
    """Draw the parts with drafts, one line of many pieces for each draft length and width: a browser draws few."""
    pieces: dict[tuple[int, int], list[tuple[int, list[float]]]] = defaultdict(list)
    for row, lane in enumerate(lanes):
        for part in parts_of(lane):
            if part[PASSES] > 0 and part[DRAFTED] > 0:
                length = max(1, round(part[DRAFTED] / part[PASSES]))
                level = min(len(_ACCEPTED) - 1, int(len(_ACCEPTED) * part[ACCEPTED] / part[DRAFTED]))
                pieces[min(length, len(figures.LENGTH_COLOURS) - 1), level].append((row, part))
    for length in sorted({length for length, _ in pieces}):
        longer = " or more" if length == len(figures.LENGTH_COLOURS) - 1 else ""
        colour, name = figures.LENGTH_COLOURS[length], f"k = {length}{longer}"
        # The legend's entry, as wide as drafts that are all accepted.
        _add_lines(drawn, [None], [None], name=name, colour=colour, width=width)
        for level, share in enumerate(_ACCEPTED):
            if found := pieces.get((length, level)):
                x, y = _line(found)
                _add_lines(drawn, x, y, name=name, colour=colour, width=share * width, is_named=False)


def _line(pieces: Sequence[tuple[int, list[float]]]) -> tuple[list[float | None], list[int | None]]:
    """Return one line of several pieces, each in its row."""
    x = [value for _, piece in pieces for value in (piece[START], piece[END], None)]
    return x, [value for row, _ in pieces for value in (row, row, None)]


def _add_lines(
    drawn: go.Figure,
    x: Sequence[float | None],
    y: Sequence[int | None],
    *,
    name: str,
    colour: str,
    width: float,
    is_named: bool = True,
) -> None:
    drawn.add_scatter(
        x=x, y=y, mode="lines", line={"color": colour, "width": round(width, 2)}, name=name, legendgroup=name,
        showlegend=is_named, hoverinfo="skip",
    )  # fmt: skip


def _add_words(drawn: go.Figure, rows: Sequence[tuple[Lane, int]], width: float) -> None:
    """Let each lane's end tell its numbers."""
    told = [[place, lane[START], lane[NUM_TOKENS], *_shares(lane)] for lane, place in rows]
    drawn.add_scatter(
        x=[lane[END] for lane, _ in rows], y=list(range(len(rows))), mode="markers", name="ends", showlegend=False,
        marker={"size": min(5.0, width), "color": figures.LENGTH_COLOURS[0]}, customdata=told,
        hovertemplate="engine %{customdata[0]}, from %{customdata[1]:.2f} s to %{x:.2f} s: %{customdata[2]} tokens, "
        "drafting in %{customdata[3]:.0%} of the time, %{customdata[4]:.0%} of the drafts accepted<extra></extra>",
    )  # fmt: skip


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
