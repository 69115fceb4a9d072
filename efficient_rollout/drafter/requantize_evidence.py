"""Whether a weight sync must requantize: where asked to, only if drafts were accepted less than after the last time."""

# With fewer first drafts judged between two syncs, a fall of some hundredths cannot be told from chance.
_LEAST_DRAFTS = 256


class RequantizeEvidence:
    """Watches how many first drafts are accepted between weight syncs.

    That does not depend on how many tokens are drafted.

    Args:
        largest_drop: Of acceptance, since the rollout after the last requantization, that is still no evidence.
    """

    def __init__(self, largest_drop: float) -> None:
        self._largest_drop = largest_drop
        self._fresh_acceptance: float | None = None
        self._num_drafts = self._num_accepted = 0

    def observe(self, num_first_drafts: int, num_accepted: int) -> None:
        """Count first drafts that were judged, and those of them that were accepted."""
        self._num_drafts += num_first_drafts
        self._num_accepted += num_accepted

    def asks(self) -> bool:
        """Tell, at a weight sync, whether to requantize.

        Too few drafts say nothing, and then it does.
        """
        num_drafts, num_accepted = self._num_drafts, self._num_accepted
        self._num_drafts = self._num_accepted = 0
        if num_drafts < _LEAST_DRAFTS:
            self._fresh_acceptance = None
            return True
        acceptance = num_accepted / num_drafts
        if self._fresh_acceptance is None:
            self._fresh_acceptance = acceptance
            return False
        if acceptance < self._fresh_acceptance - self._largest_drop:
            self._fresh_acceptance = None
            return True
        return False
