"""The three commands, through argparse, as a user calls them."""

import argparse
import json
from pathlib import Path

import pytest

from efficient_rollout.bench.calibrate import add_calibrate_command
from efficient_rollout.controller.cli import add_explain_command
from efficient_rollout.errors import ConfigError
from efficient_rollout.simulator.cli import add_simulate_command

DATA = Path(__file__).parent.parent / "data"


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(required=True)
    for add in (add_calibrate_command, add_explain_command, add_simulate_command):
        add(subparsers)
    args = parser.parse_args(argv)
    return int(args.run(args))


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("profile") / "p.json"
    assert run("calibrate", "--from-csv", str(DATA / "sweep_a100_tp1_qwen257b.csv"), "--out", str(path)) == 0
    return str(path)


def test_calibrate_writes_provenance_and_held_out_error(profile: str) -> None:
    data = json.loads(Path(profile).read_text())
    assert data["provenance"]["num_points"] == 30
    assert data["provenance"]["source"] == "sweep_a100_tp1_qwen257b.csv"
    assert data["held_out_error"]["plain"]["num_points"] > 30


def test_explain_prints_one_object_or_a_list(profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("explain", "--profile", profile, "--choices", "0,3,7")
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
def test_explain_names_a_bad_value(profile: str, fault: tuple[str, str, str]) -> None:
    with pytest.raises(ConfigError):
        run("explain", "--profile", profile, "--batch", fault[0], "--context", fault[1], "--acceptance", fault[2])


def test_simulate_writes_every_rule(profile: str, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    run("simulate", "--profile", profile, "--lengths", "lognormal:100,1.0,800", "--requests", "16", "--engines", "2",
        "--rule", "never,always:4,batch_threshold:4,8,cost_model", "--json", str(out))  # fmt: skip
    data = json.loads(out.read_text())
    assert set(data["rules"]) == {"never", "always:4", "cost_model", "batch_threshold:4,8"}
    for result in data["rules"].values():
        assert result["makespan_s"] > 0
        assert result["active_requests"]["requests"][0] == 32
        assert result["num_tokens"] == data["rules"]["never"]["num_tokens"]
        assert sum(result["seconds_by_draft_tokens"].values()) == pytest.approx(2 * result["mean_engine_s"])
