"""veRL's jobs with several workers an engine, and with several engines: whole steps on the nano policy."""

import pytest

pytest.importorskip("verl")

from verl_support import Run, assert_engine_follows_trainer, train

from efficient_rollout.metrics import names
from efficient_rollout.tasks.policy import ensure_policy

pytestmark = [pytest.mark.verl, pytest.mark.several_cores]

NUM_PROMPTS, NUM_RESPONSES = 16, 4
ROLLOUT = "actor_rollout_ref.rollout"
COMMON = (
    "size=nano",
    "drafter=int8",
    "controller=always",
    f"data.train_batch_size={NUM_PROMPTS}",
    f"{ROLLOUT}.n={NUM_RESPONSES}",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "trainer.total_training_steps=2",
    "trainer.val_before_train=false",
    "trainer.n_gpus_per_node=2",
)
# Overrides of a layout, and the engines it makes.
LAYOUTS = {
    "tensor-parallel-grpo": (["recipe=grpo", f"{ROLLOUT}.tensor_model_parallel_size=2"], 1),
    "tensor-parallel-ppo": (["recipe=ppo", f"{ROLLOUT}.tensor_model_parallel_size=2"], 1),
    "two-engines": (["recipe=grpo", f"{ROLLOUT}.tensor_model_parallel_size=1"], 2),
    "data-parallel": (
        ["recipe=grpo", f"{ROLLOUT}.tensor_model_parallel_size=1", f"{ROLLOUT}.data_parallel_size=2"],
        2,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def nano_policy() -> None:
    ensure_policy("nano")


@pytest.fixture(autouse=True)
def nothing_bound(monkeypatch) -> None:
    """What engines that this process started before were bound to is no wish of the job's user."""
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_engines_follow_the_trainer_and_all_are_counted(layout, tmp_path):
    overrides, num_engines = LAYOUTS[layout]
    run: Run = train([*COMMON, *overrides], tmp_path)
    assert sorted(run.steps) == [1, 2]
    assert_engine_follows_trainer(run, steps=(1, 2))
    for metrics in run.steps.values():
        assert metrics[names.NUM_ENGINES] == num_engines
        assert metrics[names.DRAFTER_FAULTS] == 0
        assert metrics[names.MEAN_ACCEPTED_LENGTH] > 3.0
        assert metrics[names.REQUANTIZE_SECONDS] > 0
        # Every response is counted once; the engine also emits the token that ends a response.
        responses = metrics["response_length/mean"] * NUM_PROMPTS * NUM_RESPONSES
        assert metrics[names.GENERATED_TOKENS] == pytest.approx(responses, rel=0.15)
