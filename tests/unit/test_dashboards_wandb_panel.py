"""The run's page in wandb: as both frameworks keep wandb, in a run of wandb's own that is offline."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_support import write_run

pytest.importorskip("plotly")
pytest.importorskip("wandb")

import wandb

from efficient_rollout.dashboards.wandb_panel import PANEL, ReportingWandb


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Iterator[Path]:
    """Where a run of wandb's writes its files; nobody is logged in."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with wandb.init(project="test", dir=tmp_path, settings=wandb.Settings(console="off", silent=True)) as run:
        yield Path(run.dir)


def cut(run: Path, lines: list[str], step: int) -> None:
    """Leave the run as it is when this step has ended."""
    (run / "metrics.jsonl").write_text("".join(lines[:step]))


def pages(files: Path) -> dict[str, str]:
    """The pages that wandb would upload: how far each tells of the run, by file."""
    found = (files / "media" / "html").rglob("*.html")
    return {page.name: page.read_text().split("</strong>")[1].split("(")[1].split(")")[0] for page in found}


@pytest.mark.parametrize("framework", ["verl", "openrlhf"])
def test_the_page_is_logged_in_some_steps_and_at_the_end(framework, offline, tmp_path):
    run = write_run(tmp_path / "run", num_steps=10)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    tracked = ReportingWandb(wandb, run)
    assert tracked.Table is wandb.Table, "the rest is wandb's"
    for step in range(11):
        cut(run, lines, step)
        if framework == "verl":
            tracked.log(data={"critic/score/mean": 0.5}, step=step)
        else:
            tracked.log({"train/reward": 0.5, "train/global_step": step})
            tracked.log({"eval/reward": 0.5, "eval/global_step": step})
    assert sorted(pages(offline).values()) == [
        "1 step, number 1",
        "2 steps, 1 to 2",
        "4 steps, 1 to 4",
        "8 steps, 1 to 8",
    ]
    logged: list[Any] = []
    finish, wandb_log = wandb.finish, wandb.log
    wandb.finish, wandb.log = (
        lambda **kwargs: logged.append(kwargs),
        lambda *a, **k: (logged.append(k), wandb_log(*a, **k)),
    )
    try:
        tracked.finish(exit_code=0)
        tracked.finish()
    finally:
        wandb.finish, wandb.log = finish, wandb_log
    assert logged == [{"step": None, "commit": True}, {"exit_code": 0}, {}], "once"
    assert "10 steps, 1 to 10" in pages(offline).values()
    assert all(page.stat().st_size < 6e6 for page in (offline / "media" / "html").rglob("*.html"))
    # The row that the page came in is that of its step.
    summary = dict(wandb.run.summary)
    assert summary[PANEL]["_type"] == "html-file"


def test_a_page_that_cannot_be_made_is_told_once_and_ends_nothing(offline, tmp_path, caplog, monkeypatch):
    tracked = ReportingWandb(wandb, tmp_path / "none")
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 4):
            tracked.log({"loss": 1.0}, step=step)
    (record,) = caplog.records
    assert "wandb gets no report of step 1" in record.getMessage()
    run = write_run(tmp_path / "run", num_steps=4)
    monkeypatch.setitem(sys.modules, "plotly", None)
    tracked = ReportingWandb(wandb, run)
    with caplog.at_level(logging.WARNING):
        tracked.log({"loss": 1.0}, step=8)
    assert "the report in wandb needs plotly: pip install plotly" in caplog.records[-1].getMessage()
    assert pages(offline) == {}


def test_long_runs_log_few_pages(tmp_path, monkeypatch):
    drawn: list[int] = []

    class Wandb:
        """Takes everything."""

        @staticmethod
        def log(*_args: Any, **_kwargs: Any) -> None:
            return None

    tracked = ReportingWandb(Wandb(), tmp_path)
    monkeypatch.setattr(tracked, "_log_page", lambda **_: drawn.append(tracked._newest))
    for step in range(3001):
        tracked.log({}, step=step)
    assert drawn[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 384]
    assert len(drawn) == 30
