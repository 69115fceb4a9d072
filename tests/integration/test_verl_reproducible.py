"""With `rollout_seed`, 20 steps with drafting are those without: every response, reward, loss and gradient norm."""

from pathlib import Path

import pytest

pytest.importorskip("verl")

from reproducible_support import OF_PRODUCTS
from verl_arms import assert_identical, overrides_of
from verl_support import Run, train

from efficient_rollout.drafter.cpu.native.library import native_missing
from efficient_rollout.tasks.arithmetic import DATA_SOURCE

pytestmark = [
    pytest.mark.verl,
    pytest.mark.slow,
    pytest.mark.skipif(native_missing() is not None, reason="the native kernels need a CPU with AVX2"),
]

NUM_STEPS = 20


def run_arm(arm: str, directory: Path, *, use_v1: bool) -> Run:
    steps = (f"trainer.total_training_steps={NUM_STEPS}", f"trainer.test_freq={NUM_STEPS}")
    return train([*overrides_of(arm, directory, use_v1=use_v1), *steps, "embedded_task.num_validation=768"], directory)


@pytest.mark.parametrize("use_v1", [False, True], ids=["legacy-trainer", "current-trainer"])
@pytest.mark.parametrize("baseline", ["never", "plain"])
def test_drafting_changes_no_number_of_a_run(tmp_path, baseline, use_v1):
    one, other = (run_arm(arm, tmp_path / arm, use_v1=use_v1) for arm in ("drafting", baseline))
    # Plain engines multiply with vLLM's kernels. A draw that is nearly a tie could fall the other way; none has yet.
    assert_identical(one, other, num_steps=NUM_STEPS, without=OF_PRODUCTS if baseline == "plain" else ())
    accuracy = f"val-core/{DATA_SOURCE}/acc/mean@1"
    assert one.validations[NUM_STEPS][accuracy] > one.validations[0][accuracy], "it learns"
