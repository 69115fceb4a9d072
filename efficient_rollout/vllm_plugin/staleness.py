"""Notice by acceptance that a drafter does not follow the policy."""

import logging

logger = logging.getLogger(__name__)

_WINDOW_DRAFTS = 256
# A quantized copy of the policy has its first draft accepted in well over half of the cases, at any temperature.
# Unrelated weights over a vocabulary of more than a few tokens stay far below.
_SMALLEST_ACCEPTANCE = 0.25


class StalenessWatch:
    """Acceptance of first drafts over consecutive windows; trips once and stays tripped until `reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """New weights arrived: forget."""
        self.is_stale = False
        self._num_drafts = 0
        self._num_accepted = 0

    def observe(self, *, first_draft_accepted: bool) -> None:
        """Count one verify pass of one request."""
        self._num_drafts += 1
        self._num_accepted += first_draft_accepted
        if self._num_drafts < _WINDOW_DRAFTS:
            return
        acceptance = self._num_accepted / self._num_drafts
        self._num_drafts = self._num_accepted = 0
        if acceptance < _SMALLEST_ACCEPTANCE and not self.is_stale:
            self.is_stale = True
            logger.error(
                "the drafter does not follow the policy: %.0f%% of the last %d first drafts were accepted. Its weights "
                "are stale or damaged; drafting is off in this engine until the next weight sync.",
                100 * acceptance,
                _WINDOW_DRAFTS,
            )
