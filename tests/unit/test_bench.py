"""What a benchmark is asked to do, and what it makes of the rounds; no engine."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from controller_support import a100_profile

from efficient_rollout.bench import cli, rollout
from efficient_rollout.bench.calibrate import add_calibrate_command, positive_integers
from efficient_rollout.bench.cli import add_bench_command
from efficient_rollout.bench.report import active_curve, draft_token_steps, require_matplotlib, summarize, table
from efficient_rollout.bench.rollout import RoundResult, check_arms, parse_arms
from efficient_rollout.bench.work import (
    FixedPrompts,
    RandomPrompts,
    eos_token_ids,
    read_prompts,
    requests_of,
    shortened,
)
from efficient_rollout.config import Settings
from efficient_rollout.cost_model.profile import save_profile
from efficient_rollout.errors import ConfigError, InputFileError
from efficient_rollout.policy_config import PolicyConfig
from efficient_rollout.simulator.trace import Trace


def trace(*response_tokens: int) -> Trace:
    return Trace(np.full(len(response_tokens), 5), np.array(response_tokens))


def result(seconds: float, *token_ids: list[int], **more: object) -> RoundResult:
    return RoundResult(seconds=seconds, finish_seconds=[seconds] * len(token_ids), token_ids=list(token_ids), **more)


def test_arms_are_engines_with_rules():
    arms = parse_arms("always:4,plain,ngram:3,table,off:always:4,batch_threshold:4,8")
    assert [(arm.name, arm.engine, arm.rule) for arm in arms] == [
        ("plain", "plain", None),
        ("always:4", "self_drafting", "always:4"),
        ("ngram:3", "vllm_lookup", None),
        ("table", "self_drafting", "batch_table"),
        ("off:always:4", "self_drafting", "always:4"),
        ("batch_threshold:4,8", "self_drafting", "batch_threshold:4,8"),
    ]
    assert [arm.lookup for arm in arms] == [None, None, None, None, "off", None]
    assert [arm.name for arm in arms if arm.needs_profile] == ["table"]
    assert [arm.num_draft_tokens for arm in parse_arms("ngram,ngram:3")] == [0, 4, 3]
    assert not any(arm.needs_profile for arm in parse_arms("batch_table:[[1,4,2]]")), "it brings its own table"


@pytest.mark.parametrize("text", ["warp", "ngram:0", "ngram:x", "always:4,always:4"])
def test_a_wrong_arm_is_refused(text):
    with pytest.raises(ConfigError):
        parse_arms(text)


def test_vllms_suffix_trees_need_their_package(monkeypatch):
    for found in (None, "a spec"):
        monkeypatch.setattr(rollout, "find_spec", {"arctic_inference": found}.__getitem__)
        if found:
            assert [(arm.method, arm.num_draft_tokens) for arm in parse_arms("suffix")[1:]] == [("suffix", 24)]
        else:
            with pytest.raises(ConfigError, match="pip install arctic-inference"):
                parse_arms("suffix")


def test_rounds_have_the_same_lengths_and_other_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "resolve_engine_arguments", lambda _args: None)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 64}))
    plan = cli._plan(bench_rollout(tmp_path, "--rounds", "2", "--fixed-batches", "1"))
    assert list(plan.rounds) == ["rollout", "batch 1"]
    for first, second in plan.rounds.values():
        assert [r.max_tokens for r in first] == [r.max_tokens for r in second]
        assert all(a.prompt_token_ids != b.prompt_token_ids for a, b in zip(first, second, strict=True))


def bench_rollout(policy: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_bench_command(parser.add_subparsers())
    given = ("--model", str(policy), "--dtype", "float32", "--lengths", "lognormal:8,1.0,16", "--max-draft-tokens", "4")
    return parser.parse_args(["bench", "rollout", *given, *more])


@pytest.mark.parametrize(
    ("arms", "is_measured"), [("always:2,cost_model", True), ("always:2,table", True), ("ngram", False)]
)
def test_a_profile_that_an_arm_needs_is_measured_as_for_an_engine(arms, is_measured, tmp_path, monkeypatch):
    profiles = pytest.importorskip("efficient_rollout.engine.profiles")
    asked: list[dict[str, Any]] = []

    def ensure_profile(model: str, settings: Settings, **options: Any) -> Path:
        asked.append({"model": model, "drafts": settings.controller.max_draft_tokens, **options})
        save_profile(a100_profile(), tmp_path / "p.json")
        return tmp_path / "p.json"

    monkeypatch.setattr(profiles, "ensure_profile", ensure_profile)
    monkeypatch.setattr(cli, "resolve_engine_arguments", lambda _args: None)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 64}))
    plan = cli._plan(bench_rollout(tmp_path, "--arms", arms))
    wanted = {"model": str(tmp_path), "drafts": 4, "dtype": "float32", "is_compiled": False}
    assert asked == [wanted] * is_measured
    assert plan.settings.controller.profile == (str(tmp_path / "p.json") if is_measured else None)
    with pytest.raises(ConfigError, match="raise --max-draft-tokens"):
        cli._plan(bench_rollout(tmp_path, "--arms", "cost_model,always:9"))
    assert len(asked) == is_measured, "nothing is measured for arms that are refused"


def test_arms_read_the_profile_they_are_given(tmp_path):
    save_profile(a100_profile(), tmp_path / "p.json")
    check_arms(parse_arms("table,published,cost_model"), max_draft_tokens=4, profile=tmp_path / "p.json")


@pytest.mark.parametrize("text", ["always:5", "batch_threshold:5,8", "always:x", "never:1", "table:[[1"])
def test_a_rule_that_cannot_be_what_it_says_is_refused_before_an_engine_starts(text):
    with pytest.raises(ConfigError):
        check_arms(parse_arms(text), max_draft_tokens=4, profile=None)


def test_requests_have_the_lengths_of_the_trace():
    requests = requests_of(trace(7, 3), RandomPrompts(50), seed=1)
    assert [(len(r.prompt_token_ids), r.max_tokens) for r in requests] == [(5, 7), (5, 3)]
    assert all(3 <= token < 50 for r in requests for token in r.prompt_token_ids)
    assert requests == requests_of(trace(7, 3), RandomPrompts(50), seed=1)
    assert requests != requests_of(trace(7, 3), RandomPrompts(50), seed=2)


def test_natural_ends_give_every_request_the_same_bound():
    requests = requests_of(trace(7, 3, 5), FixedPrompts(((4, 5), (6,))), seed=0, max_tokens=9)
    assert [r.max_tokens for r in requests] == [9, 9, 9]
    assert {r.prompt_token_ids for r in requests} == {(4, 5), (6,)}


def test_a_trace_can_be_shortened_but_not_stretched():
    assert shortened(trace(7, 3), 1).response_tokens.tolist() == [7]
    with pytest.raises(ConfigError):
        shortened(trace(7, 3), 3)


def test_prompts_are_read_from_json_lines(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt_token_ids": [4, 5]}\n\n{"prompt_token_ids": [6]}\n')
    assert read_prompts(path, "unused").prompts == ((4, 5), (6,))


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"prompt_token_ids": []}', '{"prompt_token_ids": 3}'])
def test_malformed_prompts_are_refused(tmp_path, text):
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(InputFileError, match=r"prompts\.jsonl"):
        read_prompts(path, "unused")


def test_summary_compares_rounds_with_the_same_number():
    # Round 2 was slow for both: a ratio of medians over all rounds would not see 2.0 in each.
    plain = [result(2.0, [1, 2], [3, 4]), result(20.0, [1, 2], [3, 4]), result(4.0, [1, 2], [3, 4])]
    fast = [result(1.0, [1, 2], [3, 4]), result(10.0, [1, 2], [3, 9]), result(2.0, [1, 2], [3, 4])]
    arms = summarize({"plain": plain, "fast": fast}, is_greedy=True)
    assert arms["fast"]["speedup"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert arms["fast"]["seconds"] == {"median": 2.0, "min": 1.0, "max": 10.0}
    assert arms["fast"]["tokens_per_second"]["median"] == 2.0
    assert arms["fast"]["identical_to_plain"] == pytest.approx(5 / 6)
    assert "identical_to_plain" not in summarize({"plain": plain}, is_greedy=False)["plain"]
    json.dumps(arms)


def test_every_arm_shows_the_round_of_plains_median():
    plain = [result(3.0, [1]), result(1.0, [1]), result(2.0, [1])]
    other = [result(5.0, [1]), result(7.0, [1]), result(6.5, [1])]
    arms = summarize({"plain": plain, "other": other}, is_greedy=False)
    assert arms["plain"]["active_requests"]["seconds"] == [0.0, 2.0]
    assert arms["other"]["active_requests"]["seconds"] == [0.0, 6.5]


def test_table_names_the_arms_that_lose():
    results = {
        "plain": [result(1.0, [1]), result(1.0, [1])],
        "slow": [result(2.0, [1]), result(1.1, [1])],
        "unsure": [result(2.0, [1]), result(0.9, [1])],
        "even": [result(1.0, [1]), result(1.0, [1])],
        "fast": [result(0.8, [1]), result(0.8, [1])],
    }
    lines = {line.split()[0]: line for line in table(summarize(results, is_greedy=False)).splitlines()}
    assert lines["slow"].endswith("  slower")
    assert lines["unsure"].endswith("not in every round")
    assert "slower" not in lines["fast"] + lines["even"] + lines["plain"]
    assert "1.250 [1.250, 1.250]" in lines["fast"]


def test_curves_over_time():
    assert active_curve([3.0, 1.0]) == {"seconds": [0.0, 1.0, 3.0], "requests": [2.0, 1.0, 0.0]}
    ticks = [(0.0, 0), (0.1, 0), (0.2, 4), (0.3, 4), (0.4, 0)]
    steps = draft_token_steps(result(1.0, [1], ticks=ticks))
    assert steps == {"seconds": [0.0, 0.2, 0.4], "draft_tokens": [0.0, 4.0, 0.0]}


def test_one_or_several_tokens_end_a_response_and_natural_ends_need_one():
    def of(eos: Any) -> PolicyConfig:
        return PolicyConfig(Path("config.json"), {"eos_token_id": eos})

    assert [eos_token_ids(of(eos)) for eos in (2, [2, 5])] == [(2,), (2, 5)]
    with pytest.raises(ConfigError, match="eos_token_id"):
        eos_token_ids(of(None))


def test_numbers_are_sorted_and_checked():
    assert positive_integers("--batches", "8,1,4,4") == (1, 4, 8)
    for text in ("", "0", "1,x", "-1"):
        with pytest.raises(ConfigError, match="--batches"):
            positive_integers("--batches", text)


def bench(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    add_bench_command(subparsers)
    add_calibrate_command(subparsers)
    parsed = parser.parse_args(arguments)
    return int(parsed.run(parsed))


def test_a_missing_policy_is_named(tmp_path):
    with pytest.raises(InputFileError, match="nowhere"):
        bench("bench", "rollout", "--model", str(tmp_path / "nowhere"), "--lengths", "lognormal:8,0.5,16")


def test_natural_ends_need_prompts(tmp_path):
    (tmp_path / "config.json").write_text('{"vocab_size": 10, "eos_token_id": 2}')
    with pytest.raises(ConfigError, match="--prompts or --task"):
        bench("bench", "rollout", "--model", str(tmp_path), "--lengths", "lognormal:8,0.5,16", "--natural-eos")


def test_calibrate_takes_one_source(capsys):
    for sources in ([], ["--from-csv", "x.csv", "--model", "x"]):
        with pytest.raises(SystemExit):
            bench("calibrate", "--out", "x.json", *sources)
        assert "--from-csv" in capsys.readouterr().err


def test_a_picture_without_matplotlib_is_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="--png needs matplotlib"):
        require_matplotlib()
