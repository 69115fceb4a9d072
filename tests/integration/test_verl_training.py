"""Whole GRPO and PPO steps through stock veRL, stock vLLM and Ray, on the nano policy."""

import json

import pytest

pytest.importorskip("verl")

from verl_support import STOCK, Run, assert_engine_follows_trainer, train

from efficient_rollout.__main__ import main
from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_record import VALIDATION_PREFIX
from efficient_rollout.metrics.timeline import MAX_BINS, StepTimelines, seconds_by_length
from efficient_rollout.tasks import reward
from efficient_rollout.tasks.dataset import write_dataset
from efficient_rollout.tasks.policy import ensure_policy

pytestmark = pytest.mark.verl

LEARNING = (
    "recipe=grpo",
    "trainer.use_v1=false",
    "size=nano",
    "drafter=int8",
    "controller=always",
    "data.train_batch_size=16",
    "actor_rollout_ref.rollout.n=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.optim.lr=1e-4",
    "embedded_task.num_validation=768",
    "actor_rollout_ref.rollout.val_kwargs.do_sample=true",
    "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
)


def training_steps(number: int) -> tuple[str, str]:
    """Overrides: so many steps, and validation before the first and after the last."""
    return f"trainer.total_training_steps={number}", f"trainer.test_freq={number}"


@pytest.fixture(scope="module")
def grpo_run(tmp_path_factory) -> Run:
    """GRPO with drafting on, for as long as it takes to see every part of a step work."""
    overrides = [*LEARNING, *training_steps(3)]
    return train(overrides, tmp_path_factory.mktemp("grpo"), loggers=("tensorboard", "wandb"))


@pytest.fixture(scope="module")
def ppo_run(tmp_path_factory) -> Run:
    """PPO through veRL's own entry point: nothing but the rollout name and the configuration is ours."""
    directory = tmp_path_factory.mktemp("ppo")
    train_file, validation_file = write_dataset(directory, size="nano", num_train=256, num_validation=32)
    return train(
        [
            "recipe=ppo",
            "trainer.use_v1=true",
            "size=nano",
            "drafter=int8",
            "controller=batch_threshold",
            f"actor_rollout_ref.model.path={ensure_policy('nano')}",
            f"data.train_files={train_file}",
            f"data.val_files={validation_file}",
            f"reward.custom_reward_function.path={reward.__file__}",
            "trainer.total_training_steps=3",
            "trainer.val_before_train=false",
        ],
        directory,
        STOCK,
    )


def assert_drawn(run: Run) -> None:
    """Timelines that fit the rollouts, and a report of them."""
    lines = (run.directory / "timeline.jsonl").read_text().splitlines()
    timelines = {item.step: item for item in (StepTimelines.from_dict(json.loads(line)) for line in lines)}
    assert sorted(timelines) == [1, 2, 3]
    for step, item in timelines.items():
        (bins,) = item.engines
        assert len(bins) <= MAX_BINS
        seconds = seconds_by_length(bins)
        assert 0.0 < sum(seconds) <= run.steps[step][names.ROLLOUT_SECONDS]
        assert sum(seconds[1:]) > 0.0, "it drafted"
    assert main(["report", str(run.directory)]) == 0
    assert "this run holds no timeline" not in (run.directory / "report.html").read_text()


def assert_reported(run: Run) -> None:
    """Our metrics, in veRL's own logger and in the file, every step."""
    for step, metrics in run.steps.items():
        ours = {key: value for key, value in metrics.items() if key.startswith(names.PREFIX)}
        for key in ours:
            plain = names.PREFIX + key.removeprefix(VALIDATION_PREFIX).removeprefix(names.PREFIX)
            assert names.is_declared(plain), key
        assert ours.items() <= run.tracked[step].items()
        assert metrics[names.NUM_ENGINES] == 1
        assert metrics[names.ROLLOUT_SECONDS] > 0
        assert metrics[names.GENERATED_TOKENS] > 0
        assert metrics[names.WEIGHT_SYNC_SECONDS] > 0, "every step syncs its weights"
        assert metrics[names.DRAFTER_FAULTS] == 0
        assert metrics[names.STALE_DRAFTER] == 0
        assert {"critic/score/mean", "response_length/mean", "response_length/max"} <= metrics.keys()


def test_a_grpo_step_of_the_legacy_trainer(grpo_run):
    run = grpo_run
    assert sorted(run.steps) == [1, 2, 3]
    assert_engine_follows_trainer(run, steps=(1, 2, 3))
    assert_reported(run)
    assert_drawn(run)
    for metrics in run.steps.values():
        assert metrics[names.SPECULATIVE_TICK_SHARE] > 0.5
        assert metrics[names.MEAN_ACCEPTED_LENGTH] > 3.0
        assert metrics[names.REQUANTIZE_SECONDS] > 0
        # Every response is counted once; the engine also emits the token that ends a response.
        responses = metrics["response_length/mean"] * 16 * 8
        assert metrics[names.GENERATED_TOKENS] == pytest.approx(responses, rel=0.15)
    assert VALIDATION_PREFIX + "generated_tokens" in run.validations[0]


def test_verls_other_loggers_get_the_metrics(grpo_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (grpo_run.directory / "tensorboard_log").rglob("events.out.*")
    scalars = EventAccumulator(str(events)).Reload()
    for name in (names.ACCEPTANCE_RATE, names.ROLLOUT_SECONDS):
        logged = {event.step: event.value for event in scalars.Scalars(name)}
        assert logged == pytest.approx({step: metrics[name] for step, metrics in grpo_run.steps.items()})
    # The protocol buffers of a run that is yet to be synced; wandb reads them only to send them.
    (offline_run,) = (grpo_run.directory / "wandb").glob("offline-run-*/*.wandb")
    content = offline_run.read_bytes()
    assert names.ACCEPTANCE_RATE.encode() in content
    # How to sum them up; no step logs a name with a star.
    assert f"{names.REASON_SHARE_PREFIX}*".encode() in content


def test_a_ppo_step_with_a_critic(ppo_run):
    assert sorted(ppo_run.steps) == [1, 2, 3]
    assert_engine_follows_trainer(ppo_run, steps=(1, 2, 3))
    assert_reported(ppo_run)
    for metrics in ppo_run.steps.values():
        assert "critic/vf_loss" in metrics
        assert metrics[names.DRAFTER_BYTES] > 0
        assert metrics[names.PACKED_WEIGHT_SHARE] == 1.0
    assert any(metrics.get(names.SPECULATIVE_TICK_SHARE, 0) > 0 for metrics in ppo_run.steps.values())
