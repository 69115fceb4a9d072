"""Is drafting good? How many drafts the policy accepts, and where in the draft it stops accepting."""

import numpy as np

from efficient_rollout.dashboards import figures
from efficient_rollout.dashboards.section import Panel, Section, missing
from efficient_rollout.metrics import names
from efficient_rollout.training_runs.run import Run

_METRICS = (
    names.ACCEPTANCE_RATE_AT_PREFIX, names.MEAN_ACCEPTED_LENGTH, names.ACCEPTANCE_RATE, names.DRAFT_PASSES,
    names.COPIES, names.COPIES_KEPT,
)  # fmt: skip
# Of a position: no draft is longer, and a name in a foreign file may be anything.
_MOST_DIGITS = 3


def drafting_section(own: Run) -> Section:
    """Show acceptance by position, and the mean accepted length over the steps."""
    panels = [_by_position(own), _accepted_length(own)]
    return Section("drafting", "Is drafting good?", _answer(own), panels, _METRICS)


def _answer(own: Run) -> str:
    lengths = own.values(names.MEAN_ACCEPTED_LENGTH)
    if not np.isfinite(lengths).any():
        return "No step of this run drafted."
    median, rate = float(np.nanmedian(lengths)), own.values(names.ACCEPTANCE_RATE)
    return (
        f"A request gains {median:.2f} tokens per verify pass in the median step, where 1 is no gain; the policy "
        f"accepts {np.nanmedian(rate):.0%} of the drafts.{_passes(own)}"
    )


def _passes(own: Run) -> str:
    if not own.has(names.DRAFT_PASSES):
        return ""
    with np.errstate(all="ignore"):  # a step may say anything of itself
        num_ticks = own.values(names.ENGINE_TICKS) * own.values(names.SPECULATIVE_TICK_SHARE)
        passes, kept = (
            own.values(names.DRAFT_PASSES) / num_ticks,
            own.values(names.COPIES_KEPT) / own.values(names.COPIES),
        )
    passes, kept = passes[np.isfinite(passes)], kept[np.isfinite(kept)]
    if not len(passes):
        return ""
    text = f" The drafter takes {np.median(passes):.1f} passes a tick"
    if not len(kept):
        return f"{text}."
    return f"{text}; of the copied tokens that they check {np.median(kept):.0%} stand."


def _by_position(own: Run) -> Panel:
    title = "Acceptance by position of the draft"
    found = own.names_under(names.ACCEPTANCE_RATE_AT_PREFIX)
    by_position = {int(tail): name for name in found if _is_position(tail := name.rpartition("/")[2])}
    if not by_position:
        return missing(title, because="No step of this run reports acceptance by position.")
    positions = sorted(by_position)
    columns = [own.values(by_position[position]) for position in positions]
    low, middle, high = np.array([np.nanpercentile(column, (25, 50, 75)) for column in columns]).T
    unit = figures.unit_of(names.ACCEPTANCE_RATE_AT_PREFIX)
    drawn = figures.figure(x_title="position in the draft (1 is first)", y_title=f"accepted of verified ({unit})")
    drawn.add_bar(
        x=positions,
        y=middle,
        marker={"color": figures.OWN_COLOUR, "line": {"width": 0}},
        error_y={"type": "data", "symmetric": False, "array": high - middle, "arrayminus": middle - low,
                 "color": "#8c8c8c"},
        showlegend=False,
        hovertemplate="position %{x}: %{y:.1%}<extra></extra>",
    )  # fmt: skip
    drawn.update_yaxes(range=[0, 1.05], tickformat=".0%")
    drawn.update_xaxes(tickmode="array", tickvals=positions)
    note = "Medians over the steps, with their quartiles. A draft behind a rejected one counts as not accepted."
    return Panel(title, drawn, note)


def _is_position(text: str) -> bool:
    return text.isdecimal() and len(text) <= _MOST_DIGITS


def _accepted_length(own: Run) -> Panel:
    title = "Mean accepted length"
    if not own.has(names.MEAN_ACCEPTED_LENGTH):
        return missing(title, because="No step of this run drafted.")
    unit = figures.unit_of(names.MEAN_ACCEPTED_LENGTH)
    series = {"mean accepted length": own.values(names.MEAN_ACCEPTED_LENGTH)}
    drawn, note = figures.lines(own.steps, series, y_title=f"per verify pass ({unit})", unit=unit)
    return Panel(title, drawn, note)
