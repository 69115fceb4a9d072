"""Two runs step by step: ratios and differences with the interval that chance leaves, and what they tell in sentences.

The page and the terminal say the same, with the same caution.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from efficient_rollout.metrics import names
from efficient_rollout.training_runs.run import REWARD_MEAN, STEP_SECONDS, Run, Values

TOKENS_PER_SECOND, ROLLOUT_SECONDS, STEP_SECONDS_RATIO = "Generated tokens/s", "Rollout seconds", "Step seconds"
# Parts of a step that neither generate nor sync: the same work with drafting and without.
_UNTOUCHED = ("old_log_prob", "ref", "values", "adv", "update_critic", "update_actor")
# Runs whose training took times as far apart as this are no runs on one free machine.
_TOLERATED_LOAD = 1.25
# Five steps that all point one way do so by chance in 1 of 16 runs without any difference, six in 1 of 32: with fewer,
# no interval of 95 % has a right to exclude anything.
MIN_STEPS = 6
_NUM_RESAMPLES, _SEED, _TAILS_PERCENT = 2000, 20261126, (2.5, 97.5)
# Of resampled steps at once: bounds the memory that a long run takes.
_RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Estimate:
    """Holds a number over `num_steps` steps with its 95 % interval, and each run's side of it.

    Where there are too few steps for an interval, both its ends are `value`.
    """

    label: str
    value: float
    low: float
    high: float
    num_steps: int
    own: float
    baseline: float

    @property
    def has_interval(self) -> bool:
        """Tell whether there are enough steps to conclude anything."""
        return self.num_steps >= MIN_STEPS

    def side(self, of: float) -> int:
        """Return 1 where the whole interval lies above `of`, -1 below, 0 where it cannot be told."""
        return int(self.low > of) - int(self.high < of) if self.has_interval else 0

    def text(self, digits: int = 2) -> str:
        """Return `1.53 [1.40, 1.66]`, or the number alone without an interval."""
        interval = f" [{self.low:.{digits}f}, {self.high:.{digits}f}]" if self.has_interval else ""
        return f"{self.value:.{digits}f}{interval}"


def speedups(own: Run, baseline: Run) -> list[Estimate]:
    """Tell how many times as fast this run is, by each measure of speed that both runs report."""
    tokens, rollouts, steps = (
        _shared(own, baseline, metric) for metric in (names.GENERATED_TOKENS, names.ROLLOUT_SECONDS, STEP_SECONDS)
    )
    found = (
        _rates(TOKENS_PER_SECOND, rollouts, tokens),
        _rates(ROLLOUT_SECONDS, rollouts),
        _rates(STEP_SECONDS_RATIO, steps),
    )
    return [estimate for estimate in found if estimate is not None]


def tokens_per_tick(own: Run, baseline: Run) -> Estimate | None:
    """Tell how many times as many tokens an engine's tick gave; None where a run counts no ticks.

    No load on the machine bends it, but it is no speed.
    """
    ticks, tokens = (_shared(own, baseline, metric) for metric in (names.ENGINE_TICKS, names.GENERATED_TOKENS))
    return _rates("Tokens/engine tick", ticks, tokens)


def untouched(own: Run, baseline: Run) -> Estimate | None:
    """Tell how many times as fast this run did what drafting does not touch: the training itself.

    On a machine that was as free for one run as for the other it is about 1. None where a run does not time it.
    """
    parts = np.array([_shared(own, baseline, f"timing_s/{part}") for part in _UNTOUCHED])
    both = np.isfinite(parts).all(axis=1, keepdims=True)
    return _rates("Training seconds", np.where(both, parts, 0.0).sum(axis=0))


def unequal_load(own: Run, baseline: Run) -> float | None:
    """Tell how many times as fast the machine itself was for this run, where that is too far from 1 to compare seconds.

    None where it is near 1, or not known. Longer responses take longer to train on: what they explain is no load.
    """
    speed = untouched(own, baseline)
    if speed is None:
        return None
    work = _rates("", _shared(own, baseline, names.GENERATED_TOKENS))
    by_work = speed.value if work is None else speed.value / work.value
    nearer = min(speed.value, by_work, key=lambda ratio: abs(np.log(ratio)))
    is_load = abs(np.log(nearer)) > np.log(_TOLERATED_LOAD) and (speed.value > 1.0) == (by_work > 1.0)
    return float(nearer) if is_load else None


def difference(own: Run, baseline: Run, metric: str) -> Estimate | None:
    """Return this run's mean less the baseline's, over steps after the first that both report; None without one."""
    columns = _shared(own, baseline, metric)
    columns = columns[:, np.isfinite(columns).all(axis=0)]
    return _bootstrapped(metric, columns, lambda means: means[0] - means[1], lambda means: means)


def shared_steps(own: Run, baseline: Run) -> list[int]:
    """Return the steps of both runs but the first and those after a resume, in which processes and caches warm up.

    Steps in which a run was short of engines are not among them either.
    """
    both = set(own.steps) & set(baseline.steps)
    left_out = {step for run in (own, baseline) for step in (*run.resumed, *run.short_of_engines)}
    return [step for step in sorted(both)[1:] if step not in left_out]


def _shared(own: Run, baseline: Run, metric: str) -> Values:
    """Return a metric of both runs, shape (2, shared steps)."""
    steps = shared_steps(own, baseline)
    return np.array([run.values(metric)[np.isin(run.steps, steps)] for run in (own, baseline)])


def _rates(label: str, spent: Values, work: Values | None = None) -> Estimate | None:
    """Return this run's work over what it spent, over the baseline's; without work, of a step each."""
    columns = np.concatenate([np.ones_like(spent) if work is None else work, spent])
    columns = columns[:, (columns > 0).all(axis=0)]
    return _bootstrapped(
        label,
        columns,
        lambda means: (means[0] / means[2]) / (means[1] / means[3]),
        lambda means: means[2:] if work is None else means[:2] / means[2:],
    )


def _bootstrapped(
    label: str, columns: Values, statistic: Callable[[Values], Values], sides: Callable[[Values], Values]
) -> Estimate | None:
    """Return `statistic` of the columns' means, and its spread over steps drawn again with replacement; None of none.

    Both runs' numbers of a step are drawn together: they share its prompts.
    """
    num_steps = columns.shape[1]
    if not num_steps:
        return None
    means = columns.mean(axis=1)
    low = high = value = float(statistic(means))
    if num_steps >= MIN_STEPS:
        rng = np.random.default_rng(_SEED)
        drawn = [
            statistic(columns[:, rng.integers(num_steps, size=(_RESAMPLES_AT_ONCE, num_steps))].mean(axis=2))
            for _ in range(_NUM_RESAMPLES // _RESAMPLES_AT_ONCE)
        ]
        low, high = map(float, np.percentile(np.concatenate(drawn), _TAILS_PERCENT))
    return Estimate(label, value, low, high, num_steps, *map(float, sides(means)))


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
    apart = difference(own, baseline, REWARD_MEAN)
    if apart is None:
        return "Cannot tell: the runs share no step after the first that both report a reward for."
    told = f"mean rewards of {apart.num_steps} shared steps are {abs(apart.value):.3f} apart"
    if not apart.has_interval:
        return f"Cannot tell yet: {told}, and so few steps say nothing for certain."
    interval = f"difference {apart.value:+.3f}, 95 % interval {apart.low:+.3f} to {apart.high:+.3f}"
    if apart.side(0.0) == 0:
        return f"No difference can be told: {told} ({interval})."
    return f"Different: {told} ({interval}). Two seeds of one recipe differ too; compare with a second baseline."
