"""An engine's counts since they were taken last, and since it started."""

from dataclasses import replace
from typing import Any

from efficient_rollout.metrics.rollout_stats import RolloutStats


class Tally:
    """Keeps statistics that are taken now and then, and all of them since the start.

    Args:
        num_engines: 0 for a part that is added to an engine's record.

    Attributes:
        recent: What was counted since `take` was called last.
    """

    def __init__(self, num_engines: int = 0) -> None:
        self.recent = RolloutStats(num_engines=num_engines)
        self._past = RolloutStats(num_engines=num_engines)

    def take(self, **state: Any) -> RolloutStats:
        """Return what was counted since the last call, with these values of its fields, and count anew."""
        taken = replace(self.recent, **state)
        self._past, self.recent = self._after(taken), RolloutStats(num_engines=self.recent.num_engines)
        return taken

    def total(self, **state: Any) -> RolloutStats:
        """Return all that was counted, with these values of the recent fields, nothing over time; takes nothing."""
        return self._after(replace(self.recent, **state))

    def _after(self, later: RolloutStats) -> RolloutStats:
        total = self._past.followed_by(later)
        if not later.num_ticks:  # the drafter is as the last tick found it
            total.num_stale_drafters = self._past.num_stale_drafters
        return total
