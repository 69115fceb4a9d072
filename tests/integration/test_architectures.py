"""Many architectures, tiny: greedy tokens equal stock vLLM's, and an unquantized drafter has every draft accepted."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import engine_support
import pytest
from architecture_cases import ARCHITECTURES, ARMS, RARE
from rare_cases import cases

pytestmark = pytest.mark.engine

FOLDER = Path(__file__).parent
ROUNDING = 2e-4  # of log-probabilities from passes over other numbers of rows
REFUSED = "attention-window-for-nobody"
UNQUANTIZED = [arm for arm, (_, drafter, _) in ARMS.items() if drafter["scheme"] == "unquantized" and arm != REFUSED]


@pytest.fixture(scope="module")
def results_of(tmp_path_factory):
    """Of common or rare architectures, by mode and arm; engines run in two processes, one after the other in each."""
    return functools.cache(lambda how_often: run_engines(how_often, tmp_path_factory.mktemp(how_often)))


@pytest.fixture
def results(request, results_of):
    """Those of the test's arm."""
    arm = request.node.callspec.params["arm"] if hasattr(request.node, "callspec") else None
    return results_of("rare" if arm in RARE else "common")


def run_engines(how_often, folder):
    for name, config in ARCHITECTURES.items():
        engine_support.random_policy(folder / name, **config)
    rows = {}
    # One after the other: two engines would wait for each other's threads.
    for mode in ("stock", "drafting"):
        command = [sys.executable, str(FOLDER / "architecture_engines.py"), mode, how_often, str(folder)]
        child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        assert child.returncode == 0, child.stderr[-3000:]
        lines = (folder / f"{mode}.jsonl").read_text().splitlines()
        rows[mode] = {row["arm"]: row for row in map(json.loads, lines)}
    return rows


def assert_equal(ours, stock):
    for mine, theirs in zip(ours, stock, strict=True):
        for position, (token, expected) in enumerate(zip(mine["tokens"], theirs["tokens"], strict=True)):
            if token != expected:
                assert theirs["gaps"][position] < ROUNDING, f"position {position}: {token} for {expected}, and no tie"
                break  # after a tie the texts are different ones


def row_of(results, arm):
    row = results["drafting"][arm]
    assert "error" not in row, row["error"]
    return row


@pytest.mark.parametrize("arm", cases((arm for arm in ARMS if arm != REFUSED), rare=RARE))
def test_greedy_tokens_equal_stock(results, arm):
    stock = results["stock"][ARMS[arm][0]]
    assert "error" not in stock, stock["error"]
    row = row_of(results, arm)
    assert_equal(row["greedy"], stock["greedy"])
    assert_equal(row.get("greedy_again", row["greedy"]), stock["greedy"])
    assert len({tuple(completion["tokens"]) for completion in stock["greedy"]}) > 3, "the policy must say something"


@pytest.mark.parametrize("arm", cases(UNQUANTIZED, rare=RARE))
def test_an_unquantized_drafter_has_every_draft_accepted(results, arm):
    for accepted, drafted, faults in row_of(results, arm)["drafts"]:
        assert faults == 0
        if arm == "attention-window":
            # Of layers that attend to everything the drafter sees a part: some of its drafts are not the policy's.
            assert 0 < accepted < drafted
        else:
            assert accepted == drafted > 100


def test_every_linear_layer_is_packed_once_under_a_name_of_its_own(results):
    packed = row_of(results, "int8")["packed"]
    assert len(packed) > 4
    assert len({number for _, _, number in packed.values()}) == len(packed)
    for path, (shape, of_drafter, _) in packed.items():
        assert of_drafter == shape, path


def test_windows_are_those_of_the_policy_in_every_group_of_the_cache(results):
    assert {has_window for _, has_window in row_of(results, "gemma2")["attention"]} == {True, False}
    assert len({group for group, _ in row_of(results, "gemma2")["attention"]}) == 2
    assert len({group for group, _ in row_of(results, "one-kv-cache-group")["attention"]}) == 1
    assert [has_window for _, has_window in row_of(results, "mistral-windows")["attention"]] == [True]


def test_a_window_that_no_layer_would_have_is_refused(results):
    assert "attention_window_tokens" in row_of(results, REFUSED)["refused"]
