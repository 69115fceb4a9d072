"""Is it faster? What the baseline took, and what a step's time goes to."""

from collections.abc import Sequence

import numpy as np

from efficient_rollout.dashboards import figures
from efficient_rollout.dashboards.section import Panel, Section, missing
from efficient_rollout.metrics import names
from efficient_rollout.training_runs.comparison import Estimate, speedups
from efficient_rollout.training_runs.run import Run, Values
from efficient_rollout.training_runs.steps import STEP_SECONDS
from efficient_rollout.training_runs.verdicts import speed_verdicts

_TIMING = "timing_s/"
# Parts of a step that veRL times side by side, in the order they run in; its other timings lie inside these.
_PARTS = {
    "gen": "generate",
    "reward": "reward",
    "old_log_prob": "old log-probs",
    "ref": "reference",
    "values": "values",
    "adv": "advantages",
    "update_critic": "update critic",
    "update_actor": "update actor",
    "update_weights": "sync weights",
    "save_checkpoint": "checkpoint",
}
_METRICS = (names.TOKENS_PER_SECOND, names.ROLLOUT_SECONDS)


def speed_section(own: Run, baseline: Run | None) -> Section:
    """Show the verdict, the ratios behind it, and the parts of every step."""
    estimates = speedups(own, baseline) if baseline is not None else []
    panels = [_ratios(estimates)] if estimates else []
    arms = [("this run", own)] + ([("baseline", baseline)] if baseline is not None else [])
    panels += [_step_parts(run, f"Where a step's seconds go: {name}") for name, run in arms]
    table = [["times as fast as the baseline", "ratio [95 % interval]", "steps"]] if estimates else []
    table += [[estimate.label, estimate.text(), str(estimate.num_steps)] for estimate in estimates]
    return Section("speed", "Is it faster?", " ".join(speed_verdicts(own, baseline)), panels, _METRICS, table)


def _ratios(estimates: Sequence[Estimate]) -> Panel:
    drawn = figures.figure(x_title="times as fast as the baseline (ratio)", y_title="")
    # The first of the table on top.
    shown = list(reversed(estimates))
    drawn.add_scatter(
        x=[estimate.value for estimate in shown],
        y=[estimate.label for estimate in shown],
        mode="markers",
        marker={"size": 11, "color": figures.OWN_COLOUR},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [estimate.high - estimate.value for estimate in shown],
            "arrayminus": [estimate.value - estimate.low for estimate in shown],
            "color": figures.OWN_COLOUR,
            "thickness": 2,
        },
        showlegend=False,
        hovertemplate="%{y}: %{x:.3f} times as fast",
    )
    drawn.add_vline(x=1.0, line={"dash": "dot", "color": "#8c8c8c", "width": 1.5})
    drawn.update_layout(height=210)
    ends = [end for estimate in estimates for end in (estimate.low, estimate.high, 1.0)]
    margin = 0.1 * (max(ends) - min(ends) or 1.0)
    drawn.update_xaxes(range=[max(0.0, min(ends) - margin), max(ends) + margin])
    drawn.update_yaxes(range=[-0.6, len(shown) - 0.4])
    note = (
        "Right of the dotted line is faster. Both runs' numbers of a step are drawn together, again and again, for the "
        "interval; it holds for these two runs, not for other seeds and machines. Responses differ in length from run "
        "to run, so tokens per second are the fairest ratio."
    )
    return Panel("Speed against the baseline", drawn, note)


def _step_parts(run: Run, title: str) -> Panel:
    whole = run.values(STEP_SECONDS)
    if not np.isfinite(whole).any():
        return missing(title, because=f"This run reports no {STEP_SECONDS}.")
    parts = run.reported({shown: _TIMING + part for part, shown in _PARTS.items()})
    known: Values = np.nansum(np.stack(list(parts.values())), axis=0) if parts else np.zeros_like(whole)
    parts["rest"] = np.maximum(0.0, whole - known)
    drawn, note = figures.stacked_bars(run.steps, parts, y_title="seconds of a step (s)", unit="s")
    return Panel(title, drawn, note)
