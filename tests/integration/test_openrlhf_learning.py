"""OpenRLHF's GRPO learns the same with drafting on and off."""

import statistics

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF has an environment of its own: bash scripts/install.sh --openrlhf")

from openrlhf_support import DRAFTING, Run, assert_drafted, assert_engine_follows_trainer, train

from efficient_rollout.metrics import names

pytestmark = [pytest.mark.openrlhf, pytest.mark.slow]

NUM_STEPS, NUM_PROMPTS, SEEDS = 12, 16, (1, 2)
# 4 updates a step, each with 32 of the 128 samples.
SIZES = f"""
    --rollout.batch_size {NUM_PROMPTS} --rollout.n_samples_per_prompt 8 --train.batch_size 32 --actor.adam.lr 1e-4
    --data.max_samples 768 --eval.dataset VALIDATION --eval.steps 1 --eval.n_samples_per_prompt 1 --eval.temperature 1
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[tuple[bool, int], Run]:
    """Both arms with the same seeds."""
    done = {}
    for enabled, ours in ((True, DRAFTING), (False, ["--efficient_rollout.enabled=false"])):
        for seed in SEEDS:
            directory = tmp_path_factory.mktemp(f"{'on' if enabled else 'off'}_{seed}")
            theirs = [*SIZES.split(), "--train.seed", str(seed)]
            sizes = {"num_prompts": NUM_STEPS * NUM_PROMPTS, "num_validation": 768}
            done[enabled, seed] = train(directory, theirs, ours=ours, **sizes)
    return done


def accuracy(run: Run, steps: tuple[int, ...]) -> float:
    """Mean reward on the validation problems after these steps."""
    (name,) = (key for key in run.evaluations[NUM_STEPS] if key.endswith("_pass1"))
    return statistics.fmean(run.evaluations[step][name] for step in steps)


def test_engine_follows_trainer_in_both_arms(runs):
    for (enabled, _), run in runs.items():
        assert_engine_follows_trainer(run)
        if enabled:
            assert_drafted(run, NUM_STEPS)
        else:
            assert all(record[names.DRAFT_TOKENS] == 0 for record in run.steps.values())


def test_training_is_unchanged_by_drafting(runs):
    """Mean rewards agree within what seeds and sampling alone spread."""
    means = {
        arm: statistics.fmean(
            record["rollout/reward_mean"]
            for (enabled, _), run in runs.items()
            if enabled is arm
            for record in run.steps.values()
        )
        for arm in (True, False)
    }
    # A reward is 0 or 1: a step's mean has a standard error below 0.5 / sqrt(prompts), its prompts being the
    # independent part; all seeds and steps make an arm's mean.
    standard_error = 0.5 / (NUM_PROMPTS * NUM_STEPS * len(SEEDS)) ** 0.5
    assert abs(means[True] - means[False]) < 3 * standard_error * 2**0.5


def test_the_policy_learns_in_both_arms(runs):
    # With 768 problems, twice a run and two runs an arm, the standard error of this difference is below 0.01.
    for arm in (True, False):
        gains = [
            accuracy(run, (NUM_STEPS - 1, NUM_STEPS)) - accuracy(run, (1, 2))
            for (enabled, _), run in runs.items()
            if enabled is arm
        ]
        assert statistics.fmean(gains) > 0.01
