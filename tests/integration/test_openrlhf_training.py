"""Whole steps through stock OpenRLHF, stock vLLM, DeepSpeed and Ray, on the nano policy."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF has an environment of its own: bash scripts/install.sh --openrlhf")

import openrlhf_agent
import openrlhf_unsynced
from openrlhf_support import NUM_ENGINES, Run, start, train
from verl_support import wait_until

from efficient_rollout.cleanup import descendants
from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_record import VALIDATION_PREFIX
from efficient_rollout.summary import read_steps, render_table

pytestmark = pytest.mark.openrlhf

# Rounding of float32 between two implementations of the policy: 6e-7 to 1.4e-5 were seen; one missed sync: 1e-2 and
# more.
MAX_PROBABILITY_DIFFERENCE = 2e-5
UNSYNCED_PROBABILITY_DIFFERENCE = 5e-3


@pytest.fixture(scope="module")
def grpo_run(tmp_path_factory) -> Run:
    """GRPO with a reference policy, two engines with prefix caching, an evaluation, and OpenRLHF's loggers."""
    directory = tmp_path_factory.mktemp("grpo")
    theirs = f"""
        {NUM_ENGINES} 2 --vllm.enable_prefix_caching --algo.kl.init_coef 1e-3 --algo.kl.use_loss --algo.kl.estimator k3
        --eval.dataset VALIDATION --eval.steps 3 --logger.tensorboard_dir {directory / "tensorboard"}
        --logger.wandb.key {"0" * 40} --logger.wandb.project test
    """
    return train(directory, theirs.split())


@pytest.fixture(scope="module")
def ppo_run(tmp_path_factory) -> Run:
    """PPO with a critic, all of it in one slot, and engines that are asked to sleep."""
    theirs = "--algo.advantage.estimator gae --train.colocate_all --vllm.enable_sleep --algo.kl.init_coef 1e-3"
    return train(tmp_path_factory.mktemp("ppo"), theirs.split(), num_prompts=16)


@pytest.fixture(scope="module")
def async_run(tmp_path_factory) -> Run:
    """REINFORCE++ baseline, rollouts going on while weights are synced, with an agent of two turns."""
    theirs = f"""
        --algo.advantage.estimator reinforce_baseline --train.async_enable --train.partial_rollout_enable
        --train.agent_func_path {openrlhf_agent.__file__}
    """
    return train(tmp_path_factory.mktemp("async"), theirs.split())


def assert_drafted(run: Run, num_steps: int) -> None:
    """Drafts were accepted in every step, and the drafter followed every sync."""
    assert sorted(run.steps) == list(range(1, num_steps + 1))
    for record in run.steps.values():
        assert record[names.MEAN_ACCEPTED_LENGTH] > 2
        assert record[names.DRAFTER_FAULTS] == record[names.STALE_DRAFTER] == 0
        assert record[names.WEIGHT_SYNC_SECONDS] > 0
        assert record[names.REQUANTIZE_SECONDS] > 0


def assert_engine_follows_trainer(run: Run) -> None:
    for record in run.steps.values():
        assert record[names.PROBABILITY_DIFFERENCE] <= MAX_PROBABILITY_DIFFERENCE


def test_grpo_with_two_engines(grpo_run):
    assert_drafted(grpo_run, 3)
    assert_engine_follows_trainer(grpo_run)
    assert all(record[names.NUM_ENGINES] == 2 for record in grpo_run.steps.values())
    assert all(record["actor_grad_norm"] > 0 for record in grpo_run.steps.values())


def test_every_response_token_is_counted_once(grpo_run):
    for record in grpo_run.steps.values():
        responses = record["rollout/response_length_mean"] * record["rollout/num_samples"]
        assert record[names.GENERATED_TOKENS] == pytest.approx(responses)


def test_an_evaluation_is_no_part_of_a_rollout(grpo_run):
    (step,) = grpo_run.evaluations
    record = grpo_run.evaluations[step]
    assert step == 3
    assert record[VALIDATION_PREFIX + names.GENERATED_TOKENS.removeprefix(names.PREFIX)] > 0
    assert names.GENERATED_TOKENS not in record


def test_its_loggers_get_the_metrics_on_its_own_axis(grpo_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (log_directory,) = (grpo_run.directory / "tensorboard").iterdir()
    events = EventAccumulator(str(log_directory))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars(f"train/{names.MEAN_ACCEPTED_LENGTH}")}
    wanted = {step: record[names.MEAN_ACCEPTED_LENGTH] for step, record in grpo_run.steps.items()}
    assert shown == pytest.approx(wanted, rel=1e-5)
    assert list(grpo_run.directory.glob("wandb/offline-run-*/*.wandb"))


def test_the_run_directory_reads_as_that_of_a_verl_run(grpo_run):
    table = render_table(read_steps(grpo_run.directory / "metrics.jsonl"))
    first = table.splitlines()[2].split()
    assert first[0] == "1"
    assert float(first[1]) == pytest.approx(grpo_run.steps[1]["rollout/reward_mean"], abs=1e-3)
    written = json.loads((grpo_run.directory / "provenance.json").read_text())
    assert written["packages"]["openrlhf"]
    assert "0" * 40 not in (grpo_run.directory / "config.yaml").read_text()


def test_ppo_with_a_critic_in_one_slot(ppo_run):
    assert_drafted(ppo_run, 2)
    assert_engine_follows_trainer(ppo_run)
    assert all(record["critic_grad_norm"] > 0 for record in ppo_run.steps.values())
    assert "--vllm.enable_sleep is False, not True" in ppo_run.log


def test_asynchronous_training_with_partial_rollouts_and_an_agent(async_run):
    assert_drafted(async_run, 3)
    assert any(record["turns"] > 1 for record in async_run.steps.values())


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
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert [pid for pid in started if (Path("/proc") / str(pid)).exists()] == []
    assert log.read_text(errors="replace").rstrip().endswith("every process of the run has ended")
