"""What goes wrong with the drafter in an engine of a veRL job is on the job's console, once, and in its metrics."""

from pathlib import Path

import pytest

pytest.importorskip("verl")

from verl_support import train

from efficient_rollout.metrics import names

pytestmark = [pytest.mark.verl, pytest.mark.slow]


def test_a_drafter_that_strays_and_one_that_fails_are_told_of(tmp_path: Path) -> None:
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
    records = {**run.validations, **run.steps}.values()
    told = {
        "the drafter does not follow the policy": "stale_drafter",
        "RuntimeError: deliberate fault": names.DRAFTER_FAULTS.removeprefix(names.PREFIX),
    }
    for text, metric in told.items():
        happened = sum(value for record in records for name, value in record.items() if name.endswith(metric))
        assert happened > 0
        assert run.log.count(text) == happened
    assert all(record["critic/score/mean"] >= 0 for record in run.steps.values())
