"""Two runs step by step: ratios and differences with the interval that chance leaves."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from efficient_rollout.metrics import names
from efficient_rollout.training_runs.run import Run, Values
from efficient_rollout.training_runs.steps import STEP_SECONDS

TOKENS_PER_SECOND, ROLLOUT_SECONDS, STEP_SECONDS_RATIO = "Generated tokens/s", "Rollout seconds", "Step seconds"
# Parts of a step that neither generate nor sync: the same work with drafting and without.
_UNTOUCHED = tuple(
    f"timing_s/{part}" for part in ("old_log_prob", "ref", "values", "adv", "update_critic", "update_actor")
)
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
    """Holds a number with its interval.

    Attributes:
        label: Of what.
        value: Over all steps.
        low: End of the 95 % interval; equal to `value` where there are too few steps for one.
        high: Its other end.
        num_steps: Steps it rests on.
        own: This run's side of it.
        baseline: The other run's.
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
        if not self.has_interval:
            return 0
        return int(self.low > of) - int(self.high < of)

    def text(self, digits: int = 2) -> str:
        """Return `1.53 [1.40, 1.66]`, or the number alone without an interval."""
        interval = f" [{self.low:.{digits}f}, {self.high:.{digits}f}]" if self.has_interval else ""
        return f"{self.value:.{digits}f}{interval}"


def speedups(own: Run, baseline: Run) -> list[Estimate]:
    """Tell how many times as fast this run is, by each measure that both runs report.

    The measures are generated tokens per second, rollout seconds and step seconds.
    """
    rates = (
        (TOKENS_PER_SECOND, _shared(own, baseline, names.GENERATED_TOKENS), names.ROLLOUT_SECONDS),
        (ROLLOUT_SECONDS, None, names.ROLLOUT_SECONDS),
        (STEP_SECONDS_RATIO, None, STEP_SECONDS),
    )
    found = (_rates(label, work, _shared(own, baseline, metric)) for label, work, metric in rates)
    return [estimate for estimate in found if estimate is not None]


def tokens_per_tick(own: Run, baseline: Run) -> Estimate | None:
    """Tell how many times as many tokens an engine's tick gave.

    No load on the machine bends it, but it is no speed.

    None where a run counts no ticks.
    """
    ticks = _shared(own, baseline, names.ENGINE_TICKS)
    return _rates("Tokens/engine tick", _shared(own, baseline, names.GENERATED_TOKENS), ticks)


def untouched(own: Run, baseline: Run) -> Estimate | None:
    """Tell how many times as fast this run did what drafting does not touch: the training itself.

    On a machine that was as free for one run as for the other it is about 1. None where a run does not time it.
    """
    parts = np.array([_shared(own, baseline, metric) for metric in _UNTOUCHED])
    both = np.isfinite(parts).all(axis=1, keepdims=True)
    ours, theirs = np.where(both, parts, 0.0).sum(axis=0)
    return _rates("Training seconds", None, (ours, theirs))


def unequal_load(own: Run, baseline: Run) -> float | None:
    """Tell how many times as fast the machine itself was for this run.

    Tell it only where that is too far from 1 to compare seconds.

    None where it is near 1, or not known. Longer responses take longer to train on: what they explain is no load.
    """
    speed = untouched(own, baseline)
    if speed is None:
        return None
    work = _rates("", None, _shared(own, baseline, names.GENERATED_TOKENS))
    by_work = speed.value if work is None else speed.value / work.value
    nearer = min(speed.value, by_work, key=lambda ratio: abs(np.log(ratio)))
    is_load = abs(np.log(nearer)) > np.log(_TOLERATED_LOAD) and (speed.value > 1.0) == (by_work > 1.0)
    return float(nearer) if is_load else None


def difference(own: Run, baseline: Run, metric: str, label: str) -> Estimate | None:
    """Return this run's mean less the baseline's, over steps after the first that both report; None without one."""
    columns = np.stack(_shared(own, baseline, metric))
    columns = columns[:, np.isfinite(columns).all(axis=0)]
    if not columns.shape[1]:
        return None
    means = columns.mean(axis=1)
    return _bootstrapped(label, columns, lambda means: means[0] - means[1], (means[0], means[1]))


def shared_steps(own: Run, baseline: Run) -> list[int]:
    """Return the steps of both runs but the first and those after a resume, in which processes and caches warm up.

    Steps in which a run was short of engines are not among them either.
    """
    both = set(own.steps) & set(baseline.steps)
    left_out = {step for run in (own, baseline) for step in (*run.resumed, *run.short_of_engines)}
    return [step for step in sorted(both)[1:] if step not in left_out]


def _shared(own: Run, baseline: Run, metric: str) -> tuple[Values, Values]:
    steps = shared_steps(own, baseline)
    ours, theirs = (dict(zip(run.steps, run.values(metric), strict=True)) for run in (own, baseline))
    return np.array([ours[step] for step in steps]), np.array([theirs[step] for step in steps])


def _rates(label: str, work: tuple[Values, Values] | None, spent: tuple[Values, Values]) -> Estimate | None:
    """Return this run's work over what it spent, over the baseline's; without work, of a step each."""
    done = work or (np.ones_like(spent[0]), np.ones_like(spent[1]))
    columns = np.stack([done[0], spent[0], done[1], spent[1]])
    columns = columns[:, (columns > 0).all(axis=0)]
    if not columns.shape[1]:
        return None
    means = columns.mean(axis=1)
    sides = (means[0] / means[1], means[2] / means[3]) if work else (means[1], means[3])
    return _bootstrapped(label, columns, _rate_ratio, sides)


def _rate_ratio(means: Values) -> Values:
    return np.asarray((means[0] / means[1]) / (means[2] / means[3]))


def _bootstrapped(
    label: str, columns: Values, statistic: Callable[[Values], Values], sides: tuple[float, float]
) -> Estimate:
    """Return `statistic` of the columns' means, and its spread over steps drawn again with replacement.

    Both runs' numbers of a step are drawn together: they share its prompts.
    """
    num_steps, own, baseline = columns.shape[1], *map(float, sides)
    value = float(statistic(columns.mean(axis=1)))
    if num_steps < MIN_STEPS:
        return Estimate(label, value, value, value, num_steps, own, baseline)
    rng = np.random.default_rng(_SEED)
    drawn = [
        statistic(columns[:, rng.integers(num_steps, size=(_RESAMPLES_AT_ONCE, num_steps))].mean(axis=2))
        for _ in range(_NUM_RESAMPLES // _RESAMPLES_AT_ONCE)
    ]
    low, high = np.percentile(np.concatenate(drawn), _TAILS_PERCENT)
    return Estimate(label, value, float(low), float(high), num_steps, own, baseline)
