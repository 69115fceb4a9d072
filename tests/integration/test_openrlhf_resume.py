"""A job of OpenRLHF's that resumes: one file, one id, and the responses that the step had before."""

import json

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF has an environment of its own: bash scripts/install.sh --openrlhf")

from openrlhf_support import DRAFTING, train
from reproducible_support import training

from efficient_rollout.metrics.step_file import RUN_ID_FILE
from efficient_rollout.training_runs.run import read_run

pytestmark = [pytest.mark.openrlhf, pytest.mark.slow]

SEEDED = (*DRAFTING, "--efficient_rollout.rollout_seed=5")
SAVES = """
    --ckpt.save_steps 2 --ckpt.load_enable --ckpt.best_metric_key none --eval.dataset VALIDATION --eval.steps 3
    --train.batch_size 16
"""
WANDB = f"--logger.wandb.key {'0' * 40} --logger.wandb.project test"
# Of the samples that were drawn, whatever was trained on them.
OF_SAMPLES = ("rollout/reward_mean", "rollout/response_length_mean", "rollout/num_samples")


def test_a_resumed_step_takes_the_place_of_the_one_before(tmp_path):
    first = train(tmp_path, [*SAVES.split(), *WANDB.split()], ours=SEEDED)
    run_id = (tmp_path / "checkpoints" / "_actor" / "global_step2" / RUN_ID_FILE).read_text()
    again = train(tmp_path, [*SAVES.split(), *WANDB.split()], ours=SEEDED)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["run_part"], row.get("is_validation", False)) for row in rows] == [
        (1, 0, False), (2, 0, False), (3, 1, False), (3, 1, True)
    ]  # fmt: skip
    assert {row["run_id"] for row in rows} == {run_id}
    assert {path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")} == {run_id}
    assert read_run(tmp_path).resumed == [3]
    assert not list(tmp_path.glob("*.1.jsonl"))
    # The same prompts at the same places, asked of the same policy.
    for name in OF_SAMPLES:
        assert training(again.steps[3])[name] == training(first.steps[3])[name]
    assert again.steps[3]["rollout/response_length_mean"] != first.steps[2]["rollout/response_length_mean"]
