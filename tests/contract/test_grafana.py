"""The Grafana dashboard asks for numbers that exist, in the order of a user's questions."""

import inspect
import json
import re
from typing import Any

import pytest
import yaml

pytest.importorskip("vllm")

from vllm.v1.metrics import loggers
from vllm.v1.spec_decode import metrics as spec_decode_metrics

from efficient_rollout.metrics.names import all_exported

QUESTIONS = [
    "Is it faster?",
    "Is drafting good?",
    "Is the controller right?",
    "What does it cost?",
    "Is an engine sick?",
]
METRIC = re.compile(r"\b(?:vllm:|efficient_rollout_)\w+")
LABELS = {"model_name", "engine", "position", "reason"}


@pytest.fixture(scope="module")
def dashboard(repository) -> dict[str, Any]:
    return json.loads((repository / "docs" / "grafana" / "efficient_rollout.json").read_text())


def test_its_rows_are_the_questions(dashboard):
    assert [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"] == QUESTIONS
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_every_query_asks_for_what_engines_export(dashboard):
    vllms = inspect.getsource(loggers) + inspect.getsource(spec_decode_metrics)
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            found = METRIC.findall(target["expr"])
            assert found, panel["title"]
            asked.update(found)
            assert set(re.findall(r"by \((\w+)\)", target["expr"])) <= LABELS
    ours = {name for name in asked if not name.startswith("vllm:")}
    assert ours == set(all_exported()), "each of our numbers is drawn, and no other"
    assert [name for name in asked - ours if f'"{name.removesuffix("_total")}"' not in vllms] == []


def test_every_alert_asks_for_what_engines_export(repository):
    (group,) = yaml.safe_load((repository / "docs" / "grafana" / "efficient_rollout_rules.yaml").read_text())["groups"]
    for rule in group["rules"]:
        assert set(METRIC.findall(rule["expr"])) <= set(all_exported())
        assert rule["annotations"]["summary"].endswith(".")


def test_every_panel_explains_itself_and_takes_the_chosen_source(dashboard):
    drawn = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    for panel in drawn:
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["fieldConfig"]["defaults"]["unit"]
    # A panel covers no other.
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in drawn]
    assert len(places) == len(set(places))
