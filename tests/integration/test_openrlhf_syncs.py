"""Weight syncs of stock OpenRLHF: beside rollouts that go on, left out on purpose, and cut short by Ctrl-C."""

import signal

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF has an environment of its own: bash scripts/install.sh --openrlhf")

import openrlhf_agent
import openrlhf_unsynced
from interrupt_support import end
from job_support import is_alive, wait_until
from openrlhf_support import MAX_PROBABILITY_DIFFERENCE, Run, start, train

from efficient_rollout.cleanup import descendants
from efficient_rollout.metrics import names

pytestmark = [pytest.mark.openrlhf, pytest.mark.slow]

UNSYNCED_PROBABILITY_DIFFERENCE = 5e-3  # 2e-2 and more were seen


@pytest.fixture(scope="module")
def async_run(tmp_path_factory) -> Run:
    """REINFORCE++ baseline, rollouts going on while weights are synced, with an agent of two turns."""
    theirs = f"""
        --algo.advantage.estimator reinforce_baseline --train.async_enable --train.partial_rollout_enable
        --train.agent_func_path {openrlhf_agent.__file__}
    """
    return train(tmp_path_factory.mktemp("async"), theirs.split())


def test_asynchronous_training_with_partial_rollouts_and_an_agent(async_run):
    # Rollouts and steps have rhythms of their own: a step's record may hold those of two, or of none.
    records = async_run.steps.values()
    assert sorted(async_run.steps) == [1, 2, 3]
    drafted, accepted = (
        sum(record.get(key, 0) for record in records) for key in (names.DRAFT_TOKENS, names.ACCEPTED_TOKENS)
    )
    assert accepted > 0.5 * drafted > 0
    assert all(record[names.WEIGHT_SYNC_SECONDS] > record[names.REQUANTIZE_SECONDS] > 0 for record in records)
    assert all(record[names.DRAFTER_FAULTS] == record[names.STALE_DRAFTER] == 0 for record in records)
    assert any(record["turns"] > 1 for record in records)


def test_the_comparison_sees_a_sync_that_was_left_out(tmp_path):
    run = train(tmp_path, command=[openrlhf_unsynced.__file__], num_prompts=16)
    assert run.steps[1][names.PROBABILITY_DIFFERENCE] <= MAX_PROBABILITY_DIFFERENCE
    assert run.steps[2][names.PROBABILITY_DIFFERENCE] > UNSYNCED_PROBABILITY_DIFFERENCE


def test_ctrl_c_leaves_nothing_behind(tmp_path):
    process = start(tmp_path, (), ["--train.num_episodes", "100"])
    log, metrics = tmp_path / "train.log", tmp_path / "metrics.jsonl"
    try:
        wait_until(metrics.exists, seconds=400, what="step 1")
        started = descendants(process.pid)
        assert len(started) > 3
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        end(process)
    assert [pid for pid in started if is_alive(pid)] == []
    assert log.read_text(errors="replace").rstrip().endswith("every process of the run has ended")
