"""A saved view of a wandb project, in the order of a user's questions; built without a network."""

from typing import Literal, NamedTuple

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from efficient_rollout.metrics import names
from efficient_rollout.training_runs.run import OPENRLHF_NAMES, REWARD_MEAN, STEP_SECONDS

Framework = Literal["verl", "openrlhf"]
NAME = "EfficientRollout: rollout latency"
# veRL's name of a metric to OpenRLHF's.
_IN_OPENRLHF = {verl: openrlhf for openrlhf, verl in OPENRLHF_NAMES.items()}


class _Chart(NamedTuple):
    """Is one line plot, of metrics under veRL's names."""

    title: str
    unit: str
    metrics: tuple[str, ...]
    is_stacked: bool = False


def _over_engines(title: str, unit: str, quantity: str) -> _Chart:
    """Show the smallest, mean and largest engine."""
    prefixes = (names.ENGINE_MIN_PREFIX, names.ENGINE_MEAN_PREFIX, names.ENGINE_MAX_PREFIX)
    return _Chart(title, unit, tuple(names.over_engines(prefix, quantity) for prefix in prefixes))


_PARTS = tuple(f"timing_s/{part}" for part in ("gen", "old_log_prob", "update_actor", "update_weights"))
_POSITIONS = tuple(f"{names.ACCEPTANCE_RATE_AT_PREFIX}{position}" for position in range(1, 5))
_QUESTIONS: dict[str, tuple[_Chart, ...]] = {
    "Is it faster?": (
        _Chart("Rollout", "s", (names.ROLLOUT_SECONDS,)),
        _Chart("Generated tokens per second", "tokens/s", (names.TOKENS_PER_SECOND,)),
        _Chart("Whole step", "s", (STEP_SECONDS,)),
        _Chart("Where a step's seconds go", "s", _PARTS, is_stacked=True),
    ),
    "Is it the same training?": (
        _Chart("Reward", "mean of a step's responses", (REWARD_MEAN,)),
        _Chart("Rollout against trainer", "mean difference of probabilities", ("training/rollout_probs_diff_mean",)),
    ),
    "Is drafting good?": (
        _Chart("Mean accepted length", "tokens per verify pass", (names.MEAN_ACCEPTED_LENGTH,)),
        _Chart("Acceptance rate", "ratio", (names.ACCEPTANCE_RATE,)),
        _Chart("Acceptance by position of the draft", "ratio", _POSITIONS),
        _Chart("Copied tokens, checked and kept", "tokens", (names.COPIES, names.COPIES_KEPT)),
    ),
    "Is the controller right?": (
        _Chart("Speed-up of ticks that drafted", "ratio", (names.PREDICTED_SPEEDUP, names.MEASURED_SPEEDUP)),
        _Chart("Ticks that drafted", "ratio", (names.SPECULATIVE_TICK_SHARE,)),
    ),
    "What does it cost?": (
        _Chart("Weight sync", "s", (names.WEIGHT_SYNC_SECONDS, names.REQUANTIZE_SECONDS)),
        _Chart("Drafting", "s", (names.DRAFT_SECONDS,)),
        _Chart("The drafter's memory", "bytes", (names.DRAFTER_BYTES,)),
    ),
    "Is an engine sick?": (
        _Chart("Drafter faults and stale drafters", "count", (names.DRAFTER_FAULTS, names.STALE_DRAFTER)),
        _Chart("Engines that reported", "count", (names.NUM_ENGINES,)),
        _over_engines("Rollout of an engine", "s", names.ROLLOUT_SECONDS),
        _over_engines("Generated tokens per second of an engine", "tokens/s", names.TOKENS_PER_SECOND),
        _over_engines("Ticks of an engine that drafted", "ratio", names.SPECULATIVE_TICK_SHARE),
        _over_engines("Mean accepted length of an engine", "tokens per verify pass", names.MEAN_ACCEPTED_LENGTH),
    ),
}


def build_view(
    entity: str, project: str, *, framework: Framework = "verl", baseline: str | None = None
) -> workspaces.Workspace:
    """Return the view as an object; `save()` sends it to the server.

    `framework` is whose names the runs' other metrics have, `baseline` the id of the run that others are compared with.
    """
    sections = [
        workspaces.Section(
            name=question, panels=[*(_line_plot(chart, framework) for chart in charts), _meanings(charts)], is_open=True
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
