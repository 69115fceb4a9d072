"""A saved view of a wandb project, in the order of a user's questions; built without a network."""

from dataclasses import dataclass
from typing import Literal

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from efficient_rollout.metrics import names
from efficient_rollout.training_runs.steps import OPENRLHF_NAMES, REWARD_MEAN, STEP_SECONDS

Framework = Literal["verl", "openrlhf"]
NAME = "EfficientRollout: rollout latency"
# veRL's name of a metric to OpenRLHF's.
_IN_OPENRLHF = {verl: openrlhf for openrlhf, verl in OPENRLHF_NAMES.items()}


@dataclass(frozen=True, slots=True)
class _Chart:
    """Is one line plot, of metrics under veRL's names."""

    title: str
    metrics: tuple[str, ...]
    unit: str
    is_stacked: bool = False


def _over_engines(title: str, quantity: str, unit: str) -> _Chart:
    """Show the smallest, mean and largest engine."""
    prefixes = (names.ENGINE_MIN_PREFIX, names.ENGINE_MEAN_PREFIX, names.ENGINE_MAX_PREFIX)
    return _Chart(title, tuple(names.over_engines(prefix, quantity) for prefix in prefixes), unit)


_QUESTIONS: dict[str, tuple[_Chart, ...]] = {
    "Is it faster?": (
        _Chart("Rollout", (names.ROLLOUT_SECONDS,), "s"),
        _Chart("Generated tokens per second", (names.TOKENS_PER_SECOND,), "tokens/s"),
        _Chart("Whole step", (STEP_SECONDS,), "s"),
        _Chart(
            "Where a step's seconds go",
            ("timing_s/gen", "timing_s/old_log_prob", "timing_s/update_actor", "timing_s/update_weights"),
            "s",
            is_stacked=True,
        ),
    ),
    "Is it the same training?": (
        _Chart("Reward", (REWARD_MEAN,), "mean of a step's responses"),
        _Chart("Rollout against trainer", ("training/rollout_probs_diff_mean",), "mean difference of probabilities"),
    ),
    "Is drafting good?": (
        _Chart("Mean accepted length", (names.MEAN_ACCEPTED_LENGTH,), "tokens per verify pass"),
        _Chart("Acceptance rate", (names.ACCEPTANCE_RATE,), "ratio"),
        _Chart(
            "Acceptance by position of the draft",
            tuple(f"{names.ACCEPTANCE_RATE_AT_PREFIX}{position}" for position in range(1, 5)),
            "ratio",
        ),
        _Chart("Copied tokens, checked and kept", (names.COPIES, names.COPIES_KEPT), "tokens"),
    ),
    "Is the controller right?": (
        _Chart("Speed-up of ticks that drafted", (names.PREDICTED_SPEEDUP, names.MEASURED_SPEEDUP), "ratio"),
        _Chart("Ticks that drafted", (names.SPECULATIVE_TICK_SHARE,), "ratio"),
    ),
    "What does it cost?": (
        _Chart("Weight sync", (names.WEIGHT_SYNC_SECONDS, names.REQUANTIZE_SECONDS), "s"),
        _Chart("Drafting", (names.DRAFT_SECONDS,), "s"),
        _Chart("The drafter's memory", (names.DRAFTER_BYTES,), "bytes"),
    ),
    "Is an engine sick?": (
        _Chart("Drafter faults and stale drafters", (names.DRAFTER_FAULTS, names.STALE_DRAFTER), "count"),
        _Chart("Engines that reported", (names.NUM_ENGINES,), "count"),
        _over_engines("Rollout of an engine", names.ROLLOUT_SECONDS, "s"),
        _over_engines("Generated tokens per second of an engine", names.TOKENS_PER_SECOND, "tokens/s"),
        _over_engines("Ticks of an engine that drafted", names.SPECULATIVE_TICK_SHARE, "ratio"),
        _over_engines("Mean accepted length of an engine", names.MEAN_ACCEPTED_LENGTH, "tokens per verify pass"),
    ),
}


def build_view(
    entity: str, project: str, *, framework: Framework = "verl", baseline: str | None = None
) -> workspaces.Workspace:
    """Return the view as an object; `save()` sends it to the server.

    Args:
        entity: wandb's team or user.
        project: Of the runs.
        framework: Whose names the runs' other metrics have.
        baseline: Id of the run that the others are compared with.
    """
    sections = [
        workspaces.Section(
            name=question,
            panels=[*(_line_plot(chart, framework) for chart in charts), _meanings(charts)],
            is_open=True,
        )
        for question, charts in _QUESTIONS.items()
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=workspaces.WorkspaceSettings(sort_panels_alphabetically=False),
        runset_settings=workspaces.RunsetSettings(baseline_run=baseline),
    )


def _line_plot(chart: _Chart, framework: Framework) -> reports.LinePlot:
    return reports.LinePlot(
        title=chart.title,
        x="Step" if framework == "verl" else "train/global_step",
        # OpenRLHF puts everything it logs of a step under one prefix.
        y=[f"train/{_IN_OPENRLHF.get(name, name)}" if framework == "openrlhf" else name for name in chart.metrics],
        title_x="training step",
        title_y=chart.unit,
        plot_type="stacked-area" if chart.is_stacked else None,
    )


def _meanings(charts: tuple[_Chart, ...]) -> reports.MarkdownPanel:
    """Tell what the numbers of a section mean, from where they are declared: a plot has no room for it."""
    shown = {names.declared(name) for chart in charts for name in chart.metrics if names.is_declared(name)}
    lines = [
        f"- `{metric.name}` ({metric.unit}{f', {metric.good} is better' if metric.good else ''}): {metric.meaning}"
        for metric in names.all_metrics()
        if metric in shown
    ]
    return reports.MarkdownPanel(markdown="\n".join(lines) or "The framework's own numbers.")
