"""Two runs step by step: ratios and differences with the interval that chance leaves."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from efficient_rollout.dashboards.run import Run, Values
from efficient_rollout.metrics import names
from efficient_rollout.summary import STEP_SECONDS

# Five steps that all point one way do so by chance in 1 of 16 runs without any difference, six in 1 of 32: with fewer,
# no interval of 95 % has a right to exclude anything.
MIN_STEPS = 6
_NUM_RESAMPLES, _SEED, _TAILS_PERCENT = 2000, 20261126, (2.5, 97.5)
# Of resampled steps at once: bounds the memory that a long run takes.
_RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval.

    Attributes:
        label: Of what.
        value: Over all steps.
        low: End of the 95 % interval; equal to `value` where there are too few steps for one.
        high: Its other end.
        num_steps: Steps it rests on.
    """

    label: str
    value: float
    low: float
    high: float
    num_steps: int

    @property
    def has_interval(self) -> bool:
        """Whether there are enough steps to conclude anything."""
        return self.num_steps >= MIN_STEPS

    def side(self, of: float) -> int:
        """1 where the whole interval lies above `of`, -1 below, 0 where it cannot be told."""
        if not self.has_interval:
            return 0
        return int(self.low > of) - int(self.high < of)

    def text(self, digits: int = 2) -> str:
        """`1.53 [1.40, 1.66]`, or the number alone without an interval."""
        interval = f" [{self.low:.{digits}f}, {self.high:.{digits}f}]" if self.has_interval else ""
        return f"{self.value:.{digits}f}{interval}"


def speedups(own: Run, baseline: Run) -> list[Estimate]:
    """How many times as fast: generated tokens per second, rollout seconds, step seconds; those both runs report."""
    found = []
    ratios = (
        ("Generated tokens/s", (names.GENERATED_TOKENS, names.ROLLOUT_SECONDS)),
        ("Rollout seconds", (None, names.ROLLOUT_SECONDS)),
        ("Step seconds", (None, STEP_SECONDS)),
    )
    for label, (work_metric, seconds_metric) in ratios:
        seconds = _shared(own, baseline, seconds_metric)
        work = tuple(np.ones_like(part) for part in seconds)
        if work_metric is not None:
            work = _shared(own, baseline, work_metric)
        columns = np.stack([work[0], seconds[0], work[1], seconds[1]])
        columns = columns[:, (columns > 0).all(axis=0)]
        if columns.shape[1]:
            found.append(_bootstrapped(label, columns, _rate_ratio))
    return found


def difference(own: Run, baseline: Run, metric: str, label: str) -> Estimate | None:
    """Mean of this run less the baseline's, over steps after the first that both report; None without one."""
    columns = np.stack(_shared(own, baseline, metric))
    columns = columns[:, np.isfinite(columns).all(axis=0)]
    if not columns.shape[1]:
        return None
    return _bootstrapped(label, columns, lambda means: means[0] - means[1])


def shared_steps(own: Run, baseline: Run) -> list[int]:
    """Steps of both runs but the first, in which processes and caches warm up."""
    return sorted(set(own.steps) & set(baseline.steps))[1:]


def _shared(own: Run, baseline: Run, metric: str) -> tuple[Values, Values]:
    steps = shared_steps(own, baseline)
    ours, theirs = (dict(zip(run.steps, run.values(metric), strict=True)) for run in (own, baseline))
    return np.array([ours[step] for step in steps]), np.array([theirs[step] for step in steps])


def _rate_ratio(means: Values) -> Values:
    return np.asarray((means[0] / means[1]) / (means[2] / means[3]))


def _bootstrapped(label: str, columns: Values, statistic: Callable[[Values], Values]) -> Estimate:
    """`statistic` of the columns' means, and its spread over steps drawn again with replacement.

    Both runs' numbers of a step are drawn together: they share its prompts.
    """
    num_steps = columns.shape[1]
    value = float(statistic(columns.mean(axis=1)))
    if num_steps < MIN_STEPS:
        return Estimate(label, value, value, value, num_steps)
    rng = np.random.default_rng(_SEED)
    drawn = [
        statistic(columns[:, rng.integers(num_steps, size=(_RESAMPLES_AT_ONCE, num_steps))].mean(axis=2))
        for _ in range(_NUM_RESAMPLES // _RESAMPLES_AT_ONCE)
    ]
    low, high = np.percentile(np.concatenate(drawn), _TAILS_PERCENT)
    return Estimate(label, value, float(low), float(high), num_steps)
