"""The view of a wandb project, as an object: saving it needs wandb's server."""

from typing import Any

import pytest

pytest.importorskip("wandb_workspaces")

from efficient_rollout.__main__ import main
from efficient_rollout.dashboards import wandb_view
from efficient_rollout.metrics import names

QUESTIONS = [
    "Is it faster?", "Is it the same training?", "Is drafting good?", "Is the controller right?", "What does it cost?",
    "Is an engine sick?",
]  # fmt: skip
COMMAND = ["dashboard", "wandb", "--entity", "team", "--project", "runs"]


def sections(**options: Any) -> dict[str, list[Any]]:
    """What would be sent: the panels of every section."""
    view = wandb_view.build_view("team", "runs", **options)._to_model()
    assert (view.entity, view.project) == ("team", "runs")
    return {part.name: part.panels for part in view.spec.section.panel_bank_config.sections}


def plotted(panels: dict[str, list[Any]]) -> list[str]:
    """Every metric of every plot."""
    configs = [panel.config for of_section in panels.values() for panel in of_section]
    return [metric for config in configs for metric in getattr(config, "metrics", None) or []]


def test_the_questions_stand_in_their_order():
    panels = sections()
    assert [name for name in panels if name in QUESTIONS] == QUESTIONS
    assert all(len(panels[name]) >= 2 for name in QUESTIONS)


@pytest.mark.parametrize("framework", ["verl", "openrlhf"])
def test_every_metric_is_one_that_somebody_logs(framework):
    prefix = "train/" if framework == "openrlhf" else ""
    metrics = plotted(sections(framework=framework))
    assert all(metric.startswith(prefix) for metric in metrics)
    ours = [name for metric in metrics if (name := metric.removeprefix(prefix)).startswith(names.PREFIX)]
    assert [name for name in ours if not names.is_declared(name)] == []
    assert {names.ROLLOUT_SECONDS, names.MEAN_ACCEPTED_LENGTH, names.PREDICTED_SPEEDUP} <= set(ours)
    assert f"{names.ACCEPTANCE_RATE_AT_PREFIX}1" in ours
    spread = {name for name in ours if name.startswith(f"{names.PREFIX}engine_m")}
    assert {name.rpartition("/")[2] for name in spread} <= {
        name.removeprefix(names.PREFIX) for name in names.PER_ENGINE
    }
    assert f"{names.ENGINE_MIN_PREFIX}generated_tokens_per_second" in spread
    theirs = "rollout/reward_mean" if framework == "openrlhf" else "critic/score/mean"
    assert f"{prefix}{theirs}" in metrics
    assert len(set(metrics)) == len(metrics)


def test_every_number_of_ours_is_explained_where_it_is_shown():
    for panels in sections().values():
        text = "\n".join(getattr(panel.config, "value", None) or "" for panel in panels)
        meanings = {metric.name: metric.meaning for metric in names.all_metrics()}
        shown = plotted({"": panels})
        assert all(meanings[name] in text for name in shown if name in meanings)


def test_the_baseline_is_named():
    view = wandb_view.build_view("team", "runs", baseline="1mbku38n")
    assert "1mbku38n" in str(view.runset_settings.baseline_run)


@pytest.mark.parametrize("option", ["--entity", "--project", "--baseline"])
def test_a_name_that_wandb_does_not_allow_is_refused(option, capsys):
    assert main([*COMMAND, option, "<b>"]) == 2
    assert f"{option} is '<b>'" in capsys.readouterr().err


def test_without_a_login_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", "/dev/null")
    assert main(COMMAND) == 2
    message = capsys.readouterr().err
    assert "wandb did not take the view of team/runs" in message
    assert "`wandb login`" in message
    assert "`wandb sync" in message
    assert "Traceback" not in message
