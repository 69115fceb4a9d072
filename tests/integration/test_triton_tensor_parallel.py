"""Two ranks in vLLM's V2 model runner: each quantizes its shard, both draw the same drafts, and no token changes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the CUDA path's tests need Triton: bash scripts/install.sh --triton")

from small_policies import save_policy

pytestmark = [pytest.mark.slow, pytest.mark.several_cores]
PROGRAM = Path(__file__).with_name("triton_ranks.py")


def run(policy, ranks, scheme, *fault):
    command = [sys.executable, str(PROGRAM), str(policy), str(ranks), scheme, *fault]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    # Workers that end may write behind it.
    (answer,) = (line for line in result.stdout.splitlines() if line.startswith('{"tokens"'))
    return json.loads(answer)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_policy(
        tmp_path_factory.mktemp("policy"), spread=0.1, has_random_norms=False, vocab_size=64, hidden_size=256,
        num_attention_heads=8,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(policy):
    """Tokens of one rank that does not draft."""
    return run(policy, 1, "none")["tokens"]


@pytest.mark.parametrize("scheme", ["int4", "unquantized"])
def test_samples_are_those_of_one_rank_that_does_not_draft(scheme, policy, expected):
    drafted = run(policy, 2, scheme)
    assert drafted["tokens"] == expected
    assert [status["drafter_fault"] for status in drafted["statuses"]] == [None, None]
    assert [status["packed_layers"] for status in drafted["statuses"]] == [9 if scheme == "int4" else 0] * 2


@pytest.mark.parametrize(("fault", "words"), [("product", "no more products"), ("loss", "its weights were lost")])
def test_a_fault_on_one_rank_ends_drafting_on_both_and_nothing_else(fault, words, policy, expected):
    drafted = run(policy, 2, "int4", fault)
    assert drafted["tokens"] == expected
    first, second = (status["drafter_fault"] for status in drafted["statuses"])
    assert words in second
    assert first is not None


def test_captured_steps_of_two_ranks_have_their_collectives_inside_and_replay_as_they_run(policy, expected):
    drafted = run(policy, 2, "int4", "graphs")
    assert drafted["tokens"] == expected
    first, second = drafted["statuses"]
    assert first["drafter_fault"] is second["drafter_fault"] is None
    assert first["num_replays"] == second["num_replays"] > 3
    assert first["wrong"] == second["wrong"] == []
    assert first["collectives"] == second["collectives"] != []
