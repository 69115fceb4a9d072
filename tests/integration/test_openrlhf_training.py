"""Whole steps through stock OpenRLHF, stock vLLM, DeepSpeed and Ray, on the nano policy."""

import json

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF has an environment of its own: bash scripts/install.sh --openrlhf")

from openrlhf_support import DRAFTING, Run, assert_drafted, assert_engine_follows_trainer, train

from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_record import VALIDATION_PREFIX
from efficient_rollout.metrics.timeline import NUM_TOKENS
from efficient_rollout.summary import render_table
from efficient_rollout.training_runs.run import read_run, read_steps

pytestmark = pytest.mark.openrlhf


@pytest.fixture(scope="module")
def grpo_run(tmp_path_factory) -> Run:
    """GRPO on one engine with prefix caching, with an evaluation, and OpenRLHF's loggers."""
    directory = tmp_path_factory.mktemp("grpo")
    theirs = f"""
        --vllm.enable_prefix_caching --eval.dataset VALIDATION --eval.steps 3
        --logger.tensorboard_dir {directory / "tensorboard"}
        --logger.wandb.key {"0" * 40} --logger.wandb.project test
    """
    ours = [*DRAFTING, "--efficient_rollout.controller.validation_max_draft_tokens=0"]
    return train(directory, theirs.split(), ours=ours)


@pytest.fixture(scope="module")
def ppo_run(tmp_path_factory) -> Run:
    """PPO with a critic, all of it in one slot, and engines that are asked to sleep."""
    theirs = "--algo.advantage.estimator gae --train.colocate_all --vllm.enable_sleep --algo.kl.init_coef 1e-3"
    return train(tmp_path_factory.mktemp("ppo"), theirs.split(), num_prompts=16)


def assert_trained(run: Run, *, num_engines: int) -> None:
    assert_drafted(run, 3)
    assert_engine_follows_trainer(run)
    assert all(record[names.NUM_ENGINES] == num_engines for record in run.steps.values())
    # Of 8 groups, all may be right or wrong as a whole in a step.
    assert any(record["actor_grad_norm"] > 0 for record in run.steps.values())


def test_grpo(grpo_run):
    assert_trained(grpo_run, num_engines=1)


@pytest.mark.slow
def test_grpo_with_a_reference_policy_and_two_engines(tmp_path):
    theirs = "--vllm.num_engines 2 --algo.kl.init_coef 1e-3 --algo.kl.use_loss --algo.kl.estimator k3"
    assert_trained(train(tmp_path, theirs.split()), num_engines=2)


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
    # Its longest draft is a setting of its own here.
    assert record[VALIDATION_PREFIX + names.SPECULATIVE_TICK_SHARE.removeprefix(names.PREFIX)] == 0


def test_its_loggers_get_the_metrics_on_its_own_axis(grpo_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (log_directory,) = (grpo_run.directory / "tensorboard").iterdir()
    events = EventAccumulator(str(log_directory))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars(f"train/{names.MEAN_ACCEPTED_LENGTH}")}
    wanted = {step: record[names.MEAN_ACCEPTED_LENGTH] for step, record in grpo_run.steps.items()}
    assert shown == pytest.approx(wanted, rel=1e-5)
    assert list(grpo_run.directory.glob("wandb/offline-run-*/*.wandb"))
    pages = grpo_run.directory.glob("wandb/offline-run-*/files/media/html/**/*.html")
    assert sum("3 steps, 1 to 3" in page.read_text() for page in pages) == 1, "the last step, as the run ended"


def test_the_run_directory_reads_as_that_of_a_verl_run(grpo_run):
    table = render_table(read_steps(grpo_run.directory / "metrics.jsonl"))
    first = table.splitlines()[-len(grpo_run.steps)].split()
    assert first[0] == "1"
    assert float(first[1]) == pytest.approx(grpo_run.steps[1]["rollout/reward_mean"], abs=1e-3)
    timelines = read_run(grpo_run.directory).timelines
    tokens = {step: sum(lane[NUM_TOKENS] for lane in item.lanes[0]) for step, item in timelines.items()}
    assert tokens == {step: grpo_run.steps[step][names.GENERATED_TOKENS] for step in (1, 2, max(grpo_run.steps))}
    written = json.loads((grpo_run.directory / "provenance.json").read_text())
    assert written["packages"]["openrlhf"]
    assert "0" * 40 not in (grpo_run.directory / "config.yaml").read_text()


@pytest.mark.slow
def test_ppo_with_a_critic_in_one_slot(ppo_run):
    assert_drafted(ppo_run, 2)
    assert_engine_follows_trainer(ppo_run)
    assert all(record["critic_grad_norm"] > 0 for record in ppo_run.steps.values())
    assert "--vllm.enable_sleep is False, not True" in ppo_run.log
