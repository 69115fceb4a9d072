"""Whole steps through stock veRL, stock vLLM and Ray, on the nano policy; and that drafting changes none of them."""

import signal

import pytest

pytest.importorskip("verl")

from interrupt_support import assert_interrupted, end
from job_support import LOG_FILE, wait_until
from verl_arms import NUM_RESPONSES, assert_identical, overrides_of
from verl_support import (
    STOCK,
    Run,
    assert_drafted,
    assert_engine_follows_trainer,
    assert_reported,
    assert_timed,
    read_run,
    start,
    train,
)

from efficient_rollout.__main__ import main
from efficient_rollout.drafter.cpu.native.library import native_missing
from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_record import VALIDATION_PREFIX
from efficient_rollout.tasks import reward
from efficient_rollout.tasks.dataset import write_dataset
from efficient_rollout.tasks.policy import ensure_policy
from efficient_rollout.verl_plugin.settings import SETTINGS_PATH

pytestmark = pytest.mark.verl

NUM_STEPS = 2
LOOPS = "efficient_rollout.verl_plugin.seeded_loops.SeededManagerTQ"
# What `efficient-rollout train` adds by itself where there is a `rollout_seed`.
SEEDED = (
    f"+actor_rollout_ref.rollout.agent.agent_loop_manager_class={LOOPS}",
    "trainer.v1.sampler.custom_sampler.name=OrderedReplayBuffer",
)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> list[str]:
    """Overrides that name the policy, the questions and the reward, as a job of one's own does."""
    directory = tmp_path_factory.mktemp("task")
    train_file, validation_file = write_dataset(directory, size="nano", num_train=256, num_validation=32)
    return [
        f"actor_rollout_ref.model.path={ensure_policy('nano')}",
        f"data.train_files={train_file}",
        f"data.val_files={validation_file}",
        f"reward.custom_reward_function.path={reward.__file__}",
    ]


@pytest.fixture(scope="module")
def drafting(task, tmp_path_factory) -> Run:
    """Through veRL's own entry point: nothing but the rollout's name and the configuration is ours."""
    directory = tmp_path_factory.mktemp("drafting")
    steps = (f"trainer.total_training_steps={NUM_STEPS}", f"trainer.test_freq={NUM_STEPS}")
    plainly = f"{SETTINGS_PATH}.controller.validation_max_draft_tokens=0"
    overrides = [*overrides_of("drafting", directory, use_v1=True), *task, *SEEDED, *steps, plainly]
    return train(overrides, directory, STOCK, loggers=("tensorboard", "wandb"))


@pytest.fixture(scope="module")
def never(task, tmp_path_factory) -> Run:
    """Without drafts, through this package's command; ended by Ctrl-C in the middle of a longer training."""
    directory = tmp_path_factory.mktemp("never")
    steps = ("trainer.total_training_steps=500", f"trainer.test_freq={NUM_STEPS}", "trainer.logger=[console,file]")
    process = start([*overrides_of("never", directory, use_v1=True), *task, *steps], directory)
    metrics = directory / "metrics.jsonl"

    def has_more_steps() -> bool:
        done = metrics.exists() and f'"step": {NUM_STEPS + 1}' in metrics.read_text()
        return done or process.poll() is not None

    try:
        wait_until(has_more_steps, seconds=400, what="the steps")
        assert process.poll() is None, (directory / LOG_FILE).read_text(errors="replace")[-6000:]
        assert_interrupted(process, directory, signal.SIGINT, 130)
    finally:
        end(process)
    return read_run(directory, (directory / LOG_FILE).read_text(errors="replace"))


@pytest.mark.skipif(native_missing() is not None, reason="the native kernels need a CPU with AVX2")
def test_drafting_changes_no_number_and_ctrl_c_leaves_nothing_behind(drafting, never):
    assert_identical(drafting, never, num_steps=NUM_STEPS)


def test_the_engine_drafts_follows_the_trainer_and_tells(drafting):
    assert sorted(drafting.steps) == [1, 2]
    assert_engine_follows_trainer(drafting, steps=(1, 2))
    assert_reported(drafting)
    assert_drafted(drafting, num_responses=NUM_RESPONSES)
    assert_timed(drafting)
    validation = drafting.validations[0]
    assert VALIDATION_PREFIX + "generated_tokens" in validation
    assert validation[VALIDATION_PREFIX + "speculative_tick_share"] == 0, "no longest draft of a validation's"
    assert validation[VALIDATION_PREFIX + "decision_share/unwanted"] > 0.9


def test_the_report_draws_the_run(drafting):
    assert main(["report", str(drafting.directory)]) == 0
    assert "this run holds no timeline" not in (drafting.directory / "report.html").read_text()


def test_verls_other_loggers_get_the_metrics(drafting):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (drafting.directory / "tensorboard_log").rglob("events.out.*")
    scalars = EventAccumulator(str(events)).Reload()
    for name in (names.ACCEPTANCE_RATE, names.ROLLOUT_SECONDS):
        logged = {event.step: event.value for event in scalars.Scalars(name)}
        assert logged == pytest.approx({step: metrics[name] for step, metrics in drafting.steps.items()})
    # The protocol buffers of a run that is yet to be synced; wandb reads them only to send them.
    (offline_run,) = (drafting.directory / "wandb").glob("offline-run-*/*.wandb")
    content = offline_run.read_bytes()
    assert names.ACCEPTANCE_RATE.encode() in content
    # How to sum them up; no step logs a name with a star.
    assert f"{names.REASON_SHARE_PREFIX}*".encode() in content
    pages = (drafting.directory / "wandb").glob("offline-run-*/files/media/html/**/*.html")
    assert sorted("2 steps, 1 to 2" in page.read_text() for page in pages) == [False, True], "of both steps"


@pytest.mark.slow
def test_steps_of_the_legacy_trainer(tmp_path):
    steps = ("trainer.total_training_steps=3", "trainer.test_freq=3", "embedded_task.num_validation=64")
    run = train([*overrides_of("drafting", tmp_path, use_v1=False), *steps], tmp_path)
    assert_engine_follows_trainer(run, steps=(1, 2, 3))
    assert_reported(run)
    assert_drafted(run, num_responses=NUM_RESPONSES)
    assert_timed(run)


@pytest.mark.slow
def test_ppo_steps_with_a_critic(task, tmp_path):
    options = (
        "recipe=ppo",
        "size=nano",
        "drafter=int8",
        "controller=batch_threshold",
        "trainer.total_training_steps=3",
    )
    run = train([*options, *task, "trainer.val_before_train=false"], tmp_path, STOCK)
    assert sorted(run.steps) == [1, 2, 3]
    assert_engine_follows_trainer(run, steps=(1, 2, 3))
    assert_reported(run)
    for metrics in run.steps.values():
        assert "critic/vf_loss" in metrics
        assert metrics[names.DRAFTER_BYTES] > 0
        assert metrics[names.PACKED_WEIGHT_SHARE] == 1.0
    assert any(metrics.get(names.SPECULATIVE_TICK_SHARE, 0) > 0 for metrics in run.steps.values())


@pytest.mark.slow
def test_a_job_that_is_terminated_while_its_engine_starts_leaves_nothing_behind(tmp_path):
    process = start(["trainer.total_training_steps=500", "trainer.test_freq=-1"], tmp_path)
    log = tmp_path / LOG_FILE
    try:
        wait_until(lambda: "EfficientServer" in log.read_text(errors="replace"), seconds=300, what="the server")
        assert_interrupted(process, tmp_path, signal.SIGTERM, 143)
    finally:
        end(process)
