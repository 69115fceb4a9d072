"""Is it the same training? Rewards of both runs, and how far rollout and trainer disagree on a token's probability."""

import numpy as np

from efficient_rollout.dashboards import figures
from efficient_rollout.dashboards.section import Panel, Section, missing
from efficient_rollout.training_runs.run import Run, Values, as_number
from efficient_rollout.training_runs.steps import REWARD_MEAN
from efficient_rollout.training_runs.verdicts import reward_verdict

# veRL's own names: mean absolute difference of the probabilities, and an estimate of the divergence.
_DISAGREEMENT = {
    "training/rollout_probs_diff_mean": "mean difference of probabilities",
    "rollout_corr/kl": "KL divergence (nats a token)",
}
_SHARES_OF_A_RUN, _MIN_WINDOW = 30, 5


def training_section(own: Run, baseline: Run | None) -> Section:
    """Show rewards with their spread, and the disagreement of rollout and trainer where veRL logs it."""
    arms = {"this run": own} | ({"baseline": baseline} if baseline is not None else {})
    panels = [_rewards(arms), *_validations(arms), _disagreement(arms)]
    return Section("training", "Is it the same training?", reward_verdict(own, baseline), panels)


def _rewards(arms: dict[str, Run]) -> Panel:
    title = "Reward"
    if not any(run.has(REWARD_MEAN) for run in arms.values()):
        return missing(title, because=f"No run reports {REWARD_MEAN}.")
    drawn = figures.figure(x_title="training step", y_title="mean reward of a step's responses")
    notes: list[str] = []
    for (name, run), colour in zip(arms.items(), (figures.OWN_COLOUR, figures.BASELINE_COLOUR), strict=False):
        means = run.values(REWARD_MEAN)
        window = max(_MIN_WINDOW, len(means) // _SHARES_OF_A_RUN)
        middle, spread = _moving(means, window)
        series = {"mean": means, "middle": middle, "low": middle - spread, "high": middle + spread}
        few = figures.thinned(run.steps, series)
        edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "legendgroup": name}
        drawn.add_scatter(x=few.steps, y=few.values["low"], **edge)
        drawn.add_scatter(x=few.steps, y=few.values["high"], fill="tonexty", fillcolor=_faint(colour), **edge)
        dots = {"size": 4, "color": colour, "opacity": 0.55}
        drawn.add_scatter(
            x=few.steps, y=few.values["mean"], mode="markers", marker=dots, showlegend=False, legendgroup=name,
            hovertemplate=f"{name}, step %{{x}}: %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
        line = {"color": colour, "width": 2}
        drawn.add_scatter(
            x=few.steps, y=few.values["middle"], mode="lines", line=line, name=name, legendgroup=name, showlegend=True,
            hovertemplate=f"{name}, around step %{{x}}: %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
        notes += [figures.thinning_note(few.group)]
    drawn.update_yaxes(rangemode="normal")
    figures.step_axis(drawn, sorted({step for run in arms.values() for step in run.steps}))
    said = "Dots are steps, the line their moving mean, the band one standard deviation of the steps around it."
    return Panel(title, drawn, " ".join([said, *dict.fromkeys(filter(None, notes))]))


def _validations(arms: dict[str, Run]) -> list[Panel]:
    """Return what validations measured, by the measure; nothing where there was none."""
    found = [(name, one) for name, run in arms.items() for one in run.validations]
    steps = sorted({int(one["step"]) for _, one in found})
    series: dict[str, Values] = {}
    for name, one in found:
        for measure in one.keys() - {"step"}:
            values = series.setdefault(f"{measure}, {name}", np.full(len(steps), np.nan))
            values[steps.index(one["step"])] = as_number(one[measure])
    shown = dict(list(sorted(series.items()))[: len(figures.PALETTE)])
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
    means = np.array([part.mean() if part.size else np.nan for part in finite])
    return means, np.array([part.std() if part.size else np.nan for part in finite])


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def _disagreement(arms: dict[str, Run]) -> Panel:
    title = "Rollout against trainer"
    shown = {
        f"{meaning}, {name}": (run, metric)
        for metric, meaning in _DISAGREEMENT.items()
        for name, run in arms.items()
        if run.has(metric)
    }
    if not shown:
        return missing(
            title,
            because="No step compares rollout and trainer: in veRL actor_rollout_ref.rollout.calculate_log_probs=true "
            "asks for it, in OpenRLHF --algo.advantage.is_correction_level token.",
        )
    steps = sorted({step for run, _ in shown.values() for step in run.steps})
    series = {label: _on(steps, run, metric) for label, (run, metric) in shown.items()}
    drawn, note = figures.lines(steps, series, y_title="disagreement a token", unit="")
    return Panel(title, drawn, f"Near zero where the engine follows the trainer, up to rounding. {note}".strip())


def _on(steps: list[int], run: Run, metric: str) -> Values:
    known = dict(zip(run.steps, run.values(metric), strict=True))
    return np.array([known.get(step, np.nan) for step in steps])
