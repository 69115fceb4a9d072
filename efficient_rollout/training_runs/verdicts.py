"""What two runs tell of each other, in sentences: the page and the terminal say the same, with the same caution."""

import numpy as np

from efficient_rollout.training_runs.comparison import (
    MIN_STEPS,
    ROLLOUT_SECONDS,
    TOKENS_PER_SECOND,
    Estimate,
    difference,
    speedups,
    tokens_per_tick,
    unequal_load,
)
from efficient_rollout.training_runs.run import Run
from efficient_rollout.training_runs.steps import REWARD_MEAN


def speed_verdicts(own: Run, baseline: Run | None) -> list[str]:
    """Tell whether rollouts and whole steps are faster, where that can be told, a sentence or two each."""
    if baseline is None:
        return [
            "Cannot tell: no baseline was given. Run the same recipe with drafting off, and name its directory with "
            "--baseline."
        ]
    estimates = speedups(own, baseline)
    if not estimates:
        return ["Cannot tell: the runs share no step after the first that both report seconds for."]
    load = unequal_load(own, baseline)
    verdicts = [_verdict(estimate, load) for estimate in estimates if estimate.label != ROLLOUT_SECONDS]
    ticks = tokens_per_tick(own, baseline)
    if ticks is not None:
        verdicts.append(
            f"Whatever else ran: {ticks.own:.2f} tokens in an engine's tick against {ticks.baseline:.2f}, "
            f"{ticks.text()} times as many; a tick that drafts takes longer than one that does not."
        )
    return verdicts


def _verdict(estimate: Estimate, load: float | None) -> str:
    what = "Rollouts" if estimate.label == TOKENS_PER_SECOND else "Whole steps"
    measured = f"{estimate.value:.2f} times as fast in {estimate.num_steps} shared steps after the first"
    if load is not None:
        return (
            f"{what}: cannot tell, {measured}, but the training, which drafting does not touch, was {load:.2f} times "
            "as fast too: something else ran beside one of the runs."
        )
    if not estimate.has_interval:
        return f"{what}: cannot tell yet, {measured}, and fewer than {MIN_STEPS} steps say nothing for certain."
    interval = f"95 % interval {estimate.low:.2f} to {estimate.high:.2f}"
    side = estimate.side(1.0)
    if side == 0:
        return f"{what}: cannot tell, {measured}, and the {interval} contains 1."
    return f"{what} are {'faster' if side > 0 else 'slower'}: {measured}, {interval}."


def reward_verdict(own: Run, baseline: Run | None) -> str:
    """Tell whether the rewards of both runs differ, in a sentence or two."""
    if not own.has(REWARD_MEAN):
        return f"Cannot tell: this run reports no {REWARD_MEAN}."
    rewards = own.values(REWARD_MEAN)
    if baseline is None:
        mean = float(np.nanmean(rewards))
        return f"Cannot tell: no baseline was given. The mean reward of this run's steps is {mean:.3f}."
    apart = difference(own, baseline, REWARD_MEAN, "reward")
    if apart is None:
        return "Cannot tell: the runs share no step after the first that both report a reward for."
    told = f"mean rewards of {apart.num_steps} shared steps are {abs(apart.value):.3f} apart"
    if not apart.has_interval:
        return f"Cannot tell yet: {told}, and so few steps say nothing for certain."
    interval = f"difference {apart.value:+.3f}, 95 % interval {apart.low:+.3f} to {apart.high:+.3f}"
    if apart.side(0.0) == 0:
        return f"No difference can be told: {told} ({interval})."
    return f"Different: {told} ({interval}). Two seeds of one recipe differ too; compare with a second baseline."
