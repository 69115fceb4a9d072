"""`simulate`, as a user calls it."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from controller_support import a100_profile

from efficient_rollout.cost_model.profile import save_profile
from efficient_rollout.errors import ConfigError
from efficient_rollout.simulator.cli import add_simulate_command


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("profile") / "p.json"
    save_profile(a100_profile(), path)
    return str(path)


def simulated(profile: str, out: Path, *argv: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_simulate_command(parser.add_subparsers(required=True))
    args = parser.parse_args(["simulate", "--profile", profile, "--json", str(out), *argv])
    assert args.run(args) == 0
    return json.loads(out.read_text())


def test_every_rule_replays_the_same_work(profile, tmp_path):
    data = simulated(profile, tmp_path / "s.json", "--lengths", "lognormal:100,1.0,800", "--requests", "16",
                     "--engines", "2", "--rule", "never,always:4,batch_threshold:4,8,cost_model")  # fmt: skip
    assert set(data["rules"]) == {"never", "always:4", "cost_model", "batch_threshold:4,8"}
    for result in data["rules"].values():
        assert result["makespan_s"] > 0
        assert result["num_tokens"] == data["rules"]["never"]["num_tokens"]
        assert sum(result["seconds_by_draft_tokens"].values()) == pytest.approx(2 * result["mean_engine_s"])


def test_a_trace_is_read_from_a_file(profile, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"response_tokens": 5}\n{"response_tokens": 7}\n')
    data = simulated(profile, tmp_path / "s.json", "--trace", str(tmp_path / "t.jsonl"), "--rule", "never")
    assert data["rules"]["never"]["num_tokens"] == 12


@pytest.mark.parametrize(
    ("option", "value"),
    [("--max-draft-tokens", "0"), ("--acceptance", "1.1"), ("--jitter", "-0.1")],
)
def test_a_number_out_of_range_is_named(profile, tmp_path, option, value):
    with pytest.raises(ConfigError, match=option):
        simulated(profile, tmp_path / "s.json", "--lengths", "lognormal:9,1,20", "--rule", "never", option, value)
