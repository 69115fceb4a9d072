"""`explain`, as a user calls it."""

import argparse
import json

import pytest
from controller_support import a100_profile

from efficient_rollout.controller.cli import add_explain_command
from efficient_rollout.cost_model.profile import save_profile
from efficient_rollout.errors import ConfigError


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    add_explain_command(parser.add_subparsers(required=True))
    args = parser.parse_args(["explain", *argv])
    return int(args.run(args))


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("profile") / "p.json"
    save_profile(a100_profile(), path)
    return str(path)


def test_explain_prints_one_object_or_a_list(profile, capsys):
    base = ("--profile", profile, "--choices", "0,3,7")
    run(*base, "--batch", "1", "--context", "1024", "--acceptance", "0.9", "--json")
    one = json.loads(capsys.readouterr().out)
    assert set(one) == {"choice", "speedup"}
    assert set(one["speedup"]) == {"0", "3", "7"}
    assert one["choice"] == 3
    assert one["speedup"]["0"] == 1.0
    run(*base, "--batch", "1,64", "--context", "1024", "--acceptance", "0.9,0.8", "--json")
    pair = json.loads(capsys.readouterr().out)
    assert [e["choice"] for e in pair] == [3, 0]
    assert pair[0] == one
    run(*base, "--batch", "1,2,4", "--context", "256,512", "--acceptance", "0.9", "--json")
    assert len(json.loads(capsys.readouterr().out)) == 6
    run(*base, "--batch", "1", "--context", "1024", "--acceptance", "0.9")
    assert "<- choice" in capsys.readouterr().out


@pytest.mark.parametrize("fault", [("0", "1", "0.9"), ("1", "1", "1.5"), ("x", "1", "0.9")])
def test_explain_names_a_bad_value(profile, fault):
    with pytest.raises(ConfigError):
        run("--profile", profile, "--batch", fault[0], "--context", fault[1], "--acceptance", fault[2])
