"""Is it faster, and is it the same training? A run against its baseline, and what a step's time goes to."""

from collections.abc import Sequence

import numpy as np

from efficient_rollout.dashboards import figures
from efficient_rollout.dashboards.figures import BASELINE_COLOUR, DOTTED, OWN_COLOUR, Panel, Section, line_panel
from efficient_rollout.metrics import names
from efficient_rollout.training_runs.comparison import Estimate, reward_verdict, speed_verdicts, speedups
from efficient_rollout.training_runs.run import REWARD_MEAN, STEP_SECONDS, Run, Values, as_number

# Parts of a step that veRL times side by side, in the order they run in; its other timings lie inside these.
_PARTS = {
    "generate": "gen",
    "reward": "reward",
    "old log-probs": "old_log_prob",
    "reference": "ref",
    "values": "values",
    "advantages": "adv",
    "update critic": "update_critic",
    "update actor": "update_actor",
    "sync weights": "update_weights",
    "checkpoint": "save_checkpoint",
}
# veRL's own names: mean absolute difference of the probabilities, and an estimate of the divergence.
_DISAGREEMENT = {
    "mean difference of probabilities": "training/rollout_probs_diff_mean",
    "KL divergence (nats a token)": "rollout_corr/kl",
}
_SHARES_OF_A_RUN, _MIN_WINDOW = 30, 5
# Of a run, and of its band.
_COLOURS = ((OWN_COLOUR, "rgba(47,126,216,0.18)"), (BASELINE_COLOUR, "rgba(224,123,40,0.18)"))


def speed_section(own: Run, baseline: Run | None) -> Section:
    """Show the verdict, the ratios behind it, and the parts of every step."""
    estimates = speedups(own, baseline) if baseline is not None else []
    panels = [_ratios(estimates)] if estimates else []
    panels += [_step_parts(run, f"Where a step's seconds go: {name}") for name, run in _arms(own, baseline).items()]
    table = [["times as fast as the baseline", "ratio [95 % interval]", "steps"]] if estimates else []
    table += [[estimate.label, estimate.text(), str(estimate.num_steps)] for estimate in estimates]
    metrics = (names.TOKENS_PER_SECOND, names.ROLLOUT_SECONDS)
    return Section("speed", "Is it faster?", " ".join(speed_verdicts(own, baseline)), panels, metrics, table)


def training_section(own: Run, baseline: Run | None) -> Section:
    """Show rewards with their spread, validations, and the disagreement of rollout and trainer where it is logged."""
    arms = _arms(own, baseline)
    panels = [_rewards(arms), *_validations(arms), _disagreement(arms)]
    return Section("training", "Is it the same training?", reward_verdict(own, baseline), panels)


def _arms(own: Run, baseline: Run | None) -> dict[str, Run]:
    return {"this run": own} | ({"baseline": baseline} if baseline is not None else {})


def _ratios(estimates: Sequence[Estimate]) -> Panel:
    drawn = figures.figure(x_title="times as fast as the baseline (ratio)", y_title="")
    # The first of the table on top.
    values, low, high = np.array([[one.value, one.low, one.high] for one in reversed(estimates)]).T
    drawn.add_scatter(
        x=values,
        y=[estimate.label for estimate in reversed(estimates)],
        mode="markers",
        marker={"size": 11, "color": OWN_COLOUR},
        error_x={"type": "data", "symmetric": False, "array": high - values, "arrayminus": values - low,
                 "color": OWN_COLOUR, "thickness": 2},
        showlegend=False,
        hovertemplate="%{y}: %{x:.3f} times as fast",
    )  # fmt: skip
    drawn.add_vline(x=1.0, line=DOTTED)
    drawn.update_layout(height=210)
    least, most = min(1.0, low.min()), max(1.0, high.max())
    margin = 0.1 * (most - least or 1.0)
    drawn.update_xaxes(range=[max(0.0, least - margin), most + margin])
    drawn.update_yaxes(range=[-0.6, len(estimates) - 0.4])
    note = (
        "Right of the dotted line is faster. Both runs' numbers of a step are drawn together, again and again, for the "
        "interval; it holds for these two runs, not for other seeds and machines. Responses differ in length from run "
        "to run, so tokens per second are the fairest ratio."
    )
    return Panel("Speed against the baseline", drawn, note)


def _step_parts(run: Run, title: str) -> Panel:
    whole = run.values(STEP_SECONDS)
    if not np.isfinite(whole).any():
        return Panel(title, None, f"This run reports no {STEP_SECONDS}.")
    parts = run.reported({shown: f"timing_s/{part}" for shown, part in _PARTS.items()})
    known = np.nansum([np.zeros_like(whole), *parts.values()], axis=0)
    parts["rest"] = np.maximum(0.0, whole - known)
    drawn, note = figures.stacked_bars(run.steps, parts, y_title="seconds of a step (s)", unit="s")
    return Panel(title, drawn, note)


def _rewards(arms: dict[str, Run]) -> Panel:
    title = "Reward"
    if not any(run.has(REWARD_MEAN) for run in arms.values()):
        return Panel(title, None, f"No run reports {REWARD_MEAN}.")
    drawn = figures.figure(x_title="training step", y_title="mean reward of a step's responses")
    notes = ["Dots are steps, the line their moving mean, the band one standard deviation of the steps around it."]
    for (name, run), (colour, faint) in zip(arms.items(), _COLOURS, strict=False):
        means = run.values(REWARD_MEAN)
        middle, spread = _moving(means, max(_MIN_WINDOW, len(means) // _SHARES_OF_A_RUN))
        series = {"mean": means, "middle": middle, "low": middle - spread, "high": middle + spread}
        steps, few, note = figures.thinned(run.steps, series)
        edge = {"x": steps, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        drawn.add_scatter(y=few["low"], legendgroup=name, **edge)
        drawn.add_scatter(y=few["high"], fill="tonexty", fillcolor=faint, legendgroup=name, **edge)
        drawn.add_scatter(
            x=steps, y=few["mean"], mode="markers", marker={"size": 4, "color": colour, "opacity": 0.55},
            showlegend=False, legendgroup=name, hovertemplate=f"{name}, step %{{x}}: %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
        drawn.add_scatter(
            x=steps, y=few["middle"], mode="lines", line={"color": colour, "width": 2}, name=name, legendgroup=name,
            showlegend=True, hovertemplate=f"{name}, around step %{{x}}: %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
        notes += [note] if note and note not in notes else []
    drawn.update_yaxes(rangemode="normal")
    figures.step_axis(drawn, _all_steps(arms))
    return Panel(title, drawn, " ".join(notes))


def _validations(arms: dict[str, Run]) -> list[Panel]:
    """Return what validations measured, by the measure; nothing where there was none."""
    found = [(name, one) for name, run in arms.items() for one in run.validations]
    steps = sorted({int(one["step"]) for _, one in found})
    series: dict[str, Values] = {}
    for name, one in found:
        for measure in one.keys() - {"step"}:
            values = series.setdefault(f"{measure}, {name}", np.full(len(steps), np.nan))
            values[steps.index(one["step"])] = as_number(one[measure])
    shown = dict(sorted(series.items())[: len(figures.PALETTE)])
    if not shown:
        return []
    drawn, note = figures.lines(steps, shown, y_title="measured by validation", unit="", are_apart=True)
    left_out = f" Of {len(series)} measures, {len(shown)} are drawn." if len(shown) < len(series) else ""
    return [Panel("Validation", drawn, f"The same questions each time.{left_out} {note}".strip())]


def _moving(values: Values, window: int) -> tuple[Values, Values]:
    """Return mean and standard deviation of the numbers within half a window of each step."""
    half = window // 2
    around = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    finite = [part[np.isfinite(part)] for part in around]
    both = np.array([(part.mean(), part.std()) if part.size else (np.nan, np.nan) for part in finite])
    return both[:, 0], both[:, 1]


def _disagreement(arms: dict[str, Run]) -> Panel:
    steps = _all_steps(arms)
    series: dict[str, Values] = {}
    for meaning, metric in _DISAGREEMENT.items():
        for name, run in arms.items():
            if run.has(metric):
                series[f"{meaning}, {name}"] = values = np.full(len(steps), np.nan)
                values[np.isin(steps, run.steps)] = run.values(metric)
    return line_panel(
        "Rollout against trainer", steps, series, y_title="disagreement a token", unit="",
        said="Near zero where the engine follows the trainer, up to rounding.",
        because="No step compares rollout and trainer: in veRL actor_rollout_ref.rollout.calculate_log_probs=true "
        "asks for it, in OpenRLHF --algo.advantage.is_correction_level token.",
    )  # fmt: skip


def _all_steps(arms: dict[str, Run]) -> list[int]:
    return sorted({step for run in arms.values() for step in run.steps})
