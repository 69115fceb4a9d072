"""A step's process: what it runs, and what it says where a check fails."""

import json
import sys
import types

import pytest

from efficient_rollout.gpu_check import steps
from efficient_rollout.gpu_check.stand import CheckFailed, Sizes, Stand


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Of a step in a module of this test's, on a stand that is none."""
    stand = Stand(device="cpu", folder=tmp_path, dtype="float32", sizes=Sizes())
    given = []

    def stand_in(folder, shapes):
        given.append((folder, shapes))
        return stand

    def fails(stand):
        raise CheckFailed("tokens", where="request 3", expected=5, found=7)

    module = types.ModuleType("steps_of_this_test")
    module.passes, module.fails = lambda stand: {"device": stand.device}, fails
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(steps, "gpu_stand", stand_in)

    def of(function):
        return ["step", f"steps_of_this_test:{function}", str(tmp_path), "7b,8b"]

    yield of
    assert given == [(tmp_path, ("7b", "8b"))]


def test_what_a_step_measured_is_written(arguments, tmp_path):
    assert steps.main(arguments("passes")) == 0
    assert json.loads((tmp_path / "step.json").read_text()) == {"device": "cpu"}


def test_a_check_that_fails_is_said_on_the_last_line(arguments, tmp_path, capsys):
    assert steps.main(arguments("fails")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "gpu-check: step FAILED: tokens (request 3): expected 5, found 7"
    assert not (tmp_path / "step.json").exists()


def test_only_the_last_steps_cost_no_certificate():
    assert [step.name for step in steps.STEPS[-3:]] == ["acceptance", "latency", "rollout"]
    assert [step.certifies for step in steps.STEPS] == [True] * (len(steps.STEPS) - 3) + [False] * 3
