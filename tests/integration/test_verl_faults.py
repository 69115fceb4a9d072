"""What goes wrong with the drafter in an engine of a veRL job is on the job's console, once, and in its metrics."""

import pytest

pytest.importorskip("verl")

from verl_support import train

from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_record import VALIDATION_PREFIX

pytestmark = [pytest.mark.verl, pytest.mark.slow]


def test_a_drafter_that_strays_and_one_that_fails_are_told_of(tmp_path):
    run = train(
        [
            "recipe=grpo_quickstart",
            "size=nano",
            "controller=always",
            "trainer.total_training_steps=2",
            "+actor_rollout_ref.rollout.engine_kwargs.vllm.logits_processors=['unfit_drafts:Spoiling']",
        ],
        tmp_path,
    )
    records = {**run.validations, **run.steps}

    def reported(step: int, name: str) -> float:
        return sum(
            value
            for key, value in records[step].items()
            if key.removeprefix(VALIDATION_PREFIX).removeprefix(names.PREFIX) == name.removeprefix(names.PREFIX)
        )

    # Once for as long as it lasts, and once each time.
    assert [reported(step, names.STALE_DRAFTER) for step in range(3)] == [1, 1, 0]
    assert run.log.count("the drafter does not follow the policy") == 1
    num_faults = sum(reported(step, names.DRAFTER_FAULTS) for step in range(3))
    assert num_faults > 0
    assert run.log.count("RuntimeError: deliberate fault") == num_faults
    assert all(record["critic/score/mean"] >= 0 for record in run.steps.values())
