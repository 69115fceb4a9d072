"""veRL's jobs with several workers an engine, and with several engines: whole steps on the nano policy."""

import functools

import pytest

pytest.importorskip("verl")

from verl_support import Run, assert_engine_follows_trainer, train

from efficient_rollout.metrics import names

pytestmark = [pytest.mark.verl, pytest.mark.several_cores, pytest.mark.slow]

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
    "data.seed=1",
    f"{ROLLOUT}.custom.efficient_rollout.rollout_seed=1",
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


@pytest.fixture(autouse=True)
def nothing_bound(monkeypatch) -> None:
    """What engines that this process started before were bound to is no wish of the job's user."""
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """The job of a layout, run once."""

    @functools.cache
    def run(layout: str) -> Run:
        return train([*COMMON, *LAYOUTS[layout][0]], tmp_path_factory.mktemp(layout))

    return run


@pytest.mark.parametrize("layout", LAYOUTS)
def test_engines_follow_the_trainer_and_all_are_counted(run_of, layout):
    run, num_engines = run_of(layout), LAYOUTS[layout][1]
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


def test_one_engine_on_two_cores_and_two_engines_sample_the_same(run_of):
    one, two = (run_of(layout).steps[1] for layout in ("tensor-parallel-grpo", "two-engines"))
    for name in ("critic/rewards/mean", "response_length/mean", "response_length/max", "response_length/min"):
        assert one[name] == two[name]
    assert one["actor/loss"] == pytest.approx(two["actor/loss"], rel=1e-2, abs=1e-4)
