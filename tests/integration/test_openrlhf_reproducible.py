"""With `rollout_seed`, training with drafting is the same training, however many engines there are."""

from pathlib import Path

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF has an environment of its own: bash scripts/install.sh --openrlhf")

from openrlhf_support import Run, train
from reproducible_support import assert_one_drafted, assert_same_training

from efficient_rollout.drafter.cpu.native.library import native_missing
from efficient_rollout.metrics import names

pytestmark = [
    pytest.mark.openrlhf,
    pytest.mark.slow,
    pytest.mark.skipif(native_missing() is not None, reason="the native kernels need a CPU with AVX2"),
]

NUM_STEPS = 2
SETTINGS = (
    # The coarsest: some of its drafts are wrong.
    "--efficient_rollout.drafter.scheme=int4",
    "--efficient_rollout.verify_kernel=native",
    "--efficient_rollout.rollout_seed=5",
)
# 2 updates a step.
SIZES = "--train.batch_size 16 --algo.kl.init_coef 1e-3 --algo.kl.use_loss --algo.kl.estimator k3"
REQUIRED = frozenset({"policy_loss", "actor_grad_norm", "rollout/reward_mean", "rollout/response_length_mean"})


def run_arm(directory: Path, rule: str, *, num_engines: int) -> Run:
    ours = [*SETTINGS, f"--efficient_rollout.controller.rule={rule}"]
    theirs = [*SIZES.split(), "--vllm.num_engines", str(num_engines)]
    return train(directory, theirs, ours=ours, num_prompts=8 * NUM_STEPS)


@pytest.fixture(scope="module")
def never(tmp_path_factory) -> Run:
    """The same settings without drafts, on one engine."""
    return run_arm(tmp_path_factory.mktemp("never"), "never", num_engines=1)


# The trainer is one process in each: what two engines sample, it adds up in one order.
@pytest.mark.parametrize("num_engines", [1, 2])
def test_drafting_changes_no_number_of_two_steps(never, tmp_path, num_engines):
    drafting = run_arm(tmp_path, "always", num_engines=num_engines)
    assert_same_training(drafting.steps, never.steps, num_steps=NUM_STEPS, required=REQUIRED)
    assert_one_drafted(drafting.steps, never.steps)
    assert any(metrics["actor_grad_norm"] > 0 for metrics in never.steps.values())
    assert all(metrics[names.NUM_ENGINES] == num_engines for metrics in drafting.steps.values())
