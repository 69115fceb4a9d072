"""`calibrate --model` and `bench rollout` on real engines: what was decoded, what was written, and who can read it."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_support import random_policy

from efficient_rollout.bench.calibrate import add_calibrate_command
from efficient_rollout.bench.cli import add_bench_command
from efficient_rollout.controller.cli import explain
from efficient_rollout.cost_model.profile import load_profile
from efficient_rollout.cost_model.table import DRAFT, PLAIN, VERIFY
from efficient_rollout.measuring import starting

pytestmark = pytest.mark.engine

RESPONSES = [1, 3, 40, 17, 5]
ARMS = ["plain", "always:3", "table", "published", "cost_model"]


def run(add_command: Any, *arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    parsed = parser.parse_args(arguments)
    assert parsed.run(parsed) == 0


@pytest.fixture(scope="module", autouse=True)
def engines_here() -> Iterator[None]:
    """In this process: what is measured, written and read is the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting, "start_engine", starting.start_in_process)
        yield


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return random_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def profile(policy) -> Path:
    path = policy.parent / "profile.json"
    run(
        add_calibrate_command,
        *("calibrate", "--model", str(policy), "--dtype", "float32", "--out", str(path)),
        *("--seconds", "8", "--max-points", "15", "--batches", "1,5", "--contexts", "32,128", "--lengths", "1,3"),
    )
    return path


@pytest.fixture(scope="module")
def document(policy, profile) -> dict[str, Any]:
    trace, path = policy.parent / "trace.jsonl", policy.parent / "bench.json"
    trace.write_text("\n".join(json.dumps({"prompt_tokens": 9, "response_tokens": n}) for n in RESPONSES))
    run(
        add_bench_command,
        *("bench", "rollout", "--model", str(policy), "--dtype", "float32", "--json", str(path)),
        *("--arms", ",".join(ARMS), "--profile", str(profile), "--max-draft-tokens", "3"),
        *("--trace", str(trace), "--rounds", "2", "--temperature", "0"),
        *("--fixed-batches", "1,3", "--fixed-tokens", "12", "--prompt-tokens", "7"),
    )
    loaded = json.loads(path.read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_the_profile_is_one_that_can_be_explained(profile):
    loaded = load_profile(profile)
    assert {point.kind for point in loaded.measured} == {PLAIN, DRAFT, VERIFY}
    assert len(loaded.measured) == 15
    assert all(seconds > 0.0 for seconds in loaded.measured.values())
    answer = {one.num_draft_tokens: one.speedup for one in explain(loaded.model, 1, 64, 0.9, [0, 1, 2, 3])}
    assert set(answer) == {0, 1, 2, 3}
    assert np.isfinite(list(answer.values())).all()


def test_the_profile_says_where_it_comes_from(profile):
    loaded = load_profile(profile)
    assert loaded.key.scheme == "int8"
    assert loaded.key.model_shape.startswith("l2-h128-")
    assert loaded.key.hardware
    assert "vllm" in loaded.key.versions
    assert loaded.provenance["num_ticks"] > 15
    assert loaded.held_out_error["leave_one_out"]["num_points"] == 15


def test_every_arm_emits_the_forced_tokens_and_the_same_ones(document):
    assert list(document["arms"]) == sorted(ARMS)
    assert document["work"] == [[[9, n] for n in RESPONSES]] * 2
    for name, arm in document["arms"].items():
        assert [r["response_tokens"] for r in arm["rounds"]] == [RESPONSES] * 2, name
        assert arm["identical_to_plain"] == 1.0, name


def test_fixed_batches_run_to_the_end_of_one_length(document):
    assert list(document["fixed_batches"]) == ["1", "3"]
    for batch, arms in document["fixed_batches"].items():
        assert list(arms) == sorted(ARMS)
        for name, arm in arms.items():
            assert [r["response_tokens"] for r in arm["rounds"]] == [[12] * int(batch)] * 2, name
            assert arm["identical_to_plain"] == 1.0, name


def test_only_drafting_arms_draft(document):
    arms = document["arms"]
    assert arms["plain"]["draft_tokens_over_time"] == {"seconds": [], "draft_tokens": []}
    assert 3.0 in arms["always:3"]["draft_tokens_over_time"]["draft_tokens"]
    for name in ARMS[1:]:
        chosen = {int(k) for r in arms[name]["rounds"] for k in r["seconds_by_draft_tokens"]}
        assert chosen <= {0, 1, 2, 3}, name
    # Each arm's own policy decided, in both rounds, though all share one engine.
    reasons = {
        name: {key.rpartition("/")[2] for r in arms[name]["rounds"] for key in r["metrics"] if "decision_share/" in key}
        for name in ARMS[1:]
    }
    assert reasons["always:3"] <= {"always", "idle"}
    assert reasons["table"] <= {"table", "outside_table", "idle"}
    assert "always" not in reasons["published"] | reasons["cost_model"]


def test_the_result_can_be_made_again(document):
    assert document["schema_version"] == 1
    assert document["settings"]["rounds"] == 2
    assert set(document["provenance"]) >= {"argv", "time", "commit", "packages", "hardware"}
    for arm in document["arms"].values():
        assert arm["speedup"]["min"] <= arm["speedup"]["median"] <= arm["speedup"]["max"]
        assert arm["active_requests"]["requests"][0] == len(RESPONSES)
        assert arm["active_requests"]["requests"][-1] == 0
