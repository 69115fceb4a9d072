"""`simulate --against`: what a benchmark measured, replayed; here the benchmark itself is simulated."""

import argparse
import json
from typing import Any

import numpy as np
import pytest
from controller_support import a100_profile

from efficient_rollout.bench.report import SCHEMA_VERSION
from efficient_rollout.controller.rule import RuleInputs, make_rule
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.cost_model.profile import save_profile
from efficient_rollout.cost_model.speedup import expected_tokens
from efficient_rollout.errors import ConfigError, InputFileError
from efficient_rollout.simulator.cli import add_simulate_command
from efficient_rollout.simulator.fleet import World, simulate
from efficient_rollout.simulator.trace import Trace
from efficient_rollout.simulator.validation import (
    MeasuredRound,
    acceptance_from,
    compare,
    judged,
    read_measured,
    report,
)

MAX_K, ACCEPTANCE = 7, 0.85
TRACE = Trace(np.full(24, 64), np.random.default_rng(5).integers(20, 700, 24))
ARMS = {"never": "never", "always:4": "always:4", "table": "batch_table", "cost_model": "cost_model"}


@pytest.fixture(scope="module")
def table() -> TickTable:
    return TickTable(a100_profile().model, MAX_K)


def document(table: TickTable, *, slowness: float = 1.0, rounds: int = 2) -> dict[str, Any]:
    """A benchmark's JSON file as it would be in a world that is the profile's, but `slowness` times as slow."""
    inputs = RuleInputs(max_draft_tokens=MAX_K, table=table)
    arms: dict[str, Any] = {arm: {"rounds": [{}] * rounds} for arm in ("plain", "ngram")}
    for arm, name in ARMS.items():
        world = World(table=table, acceptance=ACCEPTANCE, jitter_sd=0.02)
        played = [simulate(TRACE, [make_rule(name, inputs)], world, seed=100 + number) for number in range(rounds)]
        gained = expected_tokens(ACCEPTANCE, 4) - 1.0
        drafted = {"efficient_rollout/draft_tokens": 4000.0, "efficient_rollout/acceptance_rate": gained / 4,
                   "efficient_rollout/mean_accepted_length": 1.0 + gained}  # fmt: skip
        arms[arm] = {
            "rounds": [
                {
                    "seconds": slowness * outcome.makespan_s,
                    "response_tokens": TRACE.response_tokens.tolist(),
                    "metrics": {} if arm == "never" else drafted,
                }
                for outcome in played
            ]
        }
    work = [[[64, n] for n in TRACE.response_tokens.tolist()]] * rounds
    return {"schema_version": SCHEMA_VERSION, "settings": {"max_draft_tokens": MAX_K}, "work": work, "arms": arms}


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    add_simulate_command(parser.add_subparsers(required=True))
    args = parser.parse_args(["simulate", *argv])
    return int(args.run(args))


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.85, 0.99])
@pytest.mark.parametrize("k", [1, 4, 11])
def test_acceptance_is_found_from_the_mean_accepted_length(acceptance, k):
    assert acceptance_from(expected_tokens(acceptance, k), k) == pytest.approx(acceptance, abs=1e-6)


def test_a_world_like_the_profile_is_predicted_and_a_slower_one_is_told(table, tmp_path):
    path = tmp_path / "bench.json"
    for slowness, expected in ((1.0, 1.0), (1.25, 0.8)):
        path.write_text(json.dumps(document(table, slowness=slowness)))
        max_draft_tokens, measured = read_measured(path)
        assert max_draft_tokens == MAX_K
        compared = compare(measured, table)
        assert set(compared) == set(ARMS), "stock engines cannot be simulated"
        for arm in compared.values():
            assert arm["acceptance"] == pytest.approx([ACCEPTANCE] * 2, abs=1e-6)
            assert list(arm["ratio"].values()) == pytest.approx([expected] * 3, rel=0.05)
            assert arm["is_within_tolerance"] == (slowness == 1.0)


def test_the_command_prints_and_writes_a_ratio_per_arm(table, tmp_path, capsys):
    save_profile(a100_profile(), tmp_path / "p.json")
    (tmp_path / "bench.json").write_text(json.dumps(document(table, slowness=1.25)))
    base = ("--profile", str(tmp_path / "p.json"), "--against", str(tmp_path / "bench.json"))
    assert run(*base, "--json", str(tmp_path / "out.json")) == 0
    text = capsys.readouterr().out
    assert text.count("off by more than 10%") == len(ARMS)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["arms"]["always:4"]["ratio"]["median"] == pytest.approx(0.8, rel=0.05)
    with pytest.raises(ConfigError, match="not both"):
        run(*base, "--rule", "never")
    with pytest.raises(ConfigError, match="--rule"):
        run("--profile", str(tmp_path / "p.json"), "--lengths", "lognormal:9,1,20")


@pytest.mark.parametrize(
    ("simulated_s", "within"), [([1.09, 5.0, 1.0], True), ([1.11, 5.0, 1.0], False), ([0.89], False)]
)
def test_the_median_round_must_be_predicted_within_ten_per_cent(simulated_s, within):
    compared = judged([1.0] * len(simulated_s), simulated_s, [])
    assert compared["is_within_tolerance"] == within
    ordered = sorted(simulated_s)
    assert compared["ratio"] == {
        "median": ordered[len(ordered) // 2], "min": ordered[0], "max": ordered[-1]
    }  # fmt: skip


def test_the_report_marks_the_arms_that_are_off():
    arms = {name: judged([2.0], [s], []) for name, s in (("a", 2.1), ("b", 3.0))}
    _, near, far = report(arms).splitlines()
    assert near.split() == ["a", "2.00", "2.10", "1.050", "[1.050,", "1.050]"]
    assert far.endswith("1.500 [1.500, 1.500]  off by more than 10%")


def test_an_arm_without_drafts_takes_the_mean_acceptance_of_the_others_in_its_round(table):
    def rounds(*acceptances: float | None) -> list[MeasuredRound]:
        return [
            MeasuredRound(trace=Trace(np.array([8]), np.array([8])), seconds=1.0, acceptance=a) for a in acceptances
        ]

    arms = {"never": rounds(None, None), "always:1": rounds(0.5, None), "always:2": rounds(0.75, 0.25)}
    compared = compare(arms, table)
    assert {name: arm["acceptance"] for name, arm in compared.items()} == {
        "never": [0.625, 0.25],
        "always:1": [0.5, 0.25],
        "always:2": [0.75, 0.25],
    }


@pytest.mark.parametrize("name", ["published", "cost_model"])
def test_a_rule_keeps_what_it_learned_and_is_told_of_the_sync_between_rounds(table, name):
    played = MeasuredRound(trace=TRACE, seconds=1.0, acceptance=ACCEPTANCE)
    compared = compare({name: [played] * 3}, table)[name]
    rule, world = make_rule(name, RuleInputs(max_draft_tokens=MAX_K, table=table)), World(table=table, acceptance=0.85)
    expected = []
    for number in range(3):
        expected.append(simulate(TRACE, [rule], world, seed=number).makespan_s)
        rule.mark_stale()
    assert compared["simulated_s"] == expected


def test_responses_count_as_they_were_emitted_not_as_they_were_allowed(table, tmp_path):
    raw = document(table, rounds=1)
    whole = [64] * len(TRACE.response_tokens)
    raw["work"] = [[[n, 100_000] for n in whole]]
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(raw))
    assert compare(read_measured(path)[1], table)["never"]["ratio"]["median"] == pytest.approx(1.0, rel=0.05)


def test_drafts_of_which_none_was_accepted_are_an_acceptance_of_zero(table, tmp_path):
    raw = document(table, rounds=1)
    for result in raw["arms"]["always:4"]["rounds"]:
        result["metrics"] |= {"efficient_rollout/acceptance_rate": 0.0, "efficient_rollout/mean_accepted_length": 1.0}
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(raw))
    assert read_measured(path)[1]["always:4"][0].acceptance == 0.0


NO_ARM = '{"schema_version": 1, "work": [], "settings": {"max_draft_tokens": 4}, "arms": {"plain": {"rounds": []}}}'
NO_ROUND = NO_ARM.replace("plain", "never")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "No such file"),
        ("no json", "is not JSON"),
        ("{}", "no result of a benchmark"),
        ('{"schema_version": 9}', "schema version 9; this program reads 1"),
        ('{"schema_version": 1, "work": []}', "KeyError: 'arms'"),
        (NO_ARM, "no round of an arm that can be simulated"),
        (NO_ROUND, "no round of an arm that can be simulated"),
    ],
)
def test_a_file_that_is_no_benchmark_is_refused(tmp_path, text, fault):
    path = tmp_path / "bench.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputFileError, match=rf"bench\.json.*{fault}"):
        read_measured(path)
