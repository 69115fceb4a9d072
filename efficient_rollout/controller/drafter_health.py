"""May this engine draft, and if not, why not: what a rank knows, what it reports, and what acceptance shows."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_WINDOW_DRAFTS = 256
# A quantized copy of the policy has its first draft accepted in well over half of the cases, at any temperature.
# Unrelated weights over a vocabulary of more than a few tokens stay far below.
_SMALLEST_ACCEPTANCE = 0.25


@dataclass(frozen=True, slots=True)
class DrafterReport:
    """Says how a worker's weights and its drafter are.

    Attributes:
        weights_version: Weight syncs that were completed since the engine started.
        weights_fault: Why the weights in the engine are no policy's; None while they are.
        drafter_fault: Why the drafter is off; None while it works.
    """

    weights_version: int = 0
    weights_fault: str | None = None
    drafter_fault: str | None = None

    @classmethod
    def of_all(cls, reports: Sequence["DrafterReport"]) -> "DrafterReport":
        """Return one report of an engine whose ranks hold a part of the policy each, in order of their ranks.

        It has a fault that one of them has, and new weights once all of them have.
        """
        return cls(
            min(report.weights_version for report in reports),
            _of_first([report.weights_fault for report in reports]),
            _of_first([report.drafter_fault for report in reports]),
        )


@dataclass(slots=True)
class Health:
    """Is the one place on a rank that knows how its weights and its drafter are.

    Attributes:
        weights_version: Weight syncs that were completed since the engine started.
        weights_fault: Why the weights in the engine are no policy's; None while they are.
        drafter_fault: Why the drafter is off; None while it works. The next weight sync requantizes then.
        num_drafter_faults: Faults that turned the drafter off, since they were counted last.
    """

    weights_version: int = 0
    weights_fault: str | None = None
    drafter_fault: str | None = None
    num_drafter_faults: int = 0

    def report(self) -> DrafterReport:
        """Return what the scheduler is told."""
        return DrafterReport(self.weights_version, self.weights_fault, self.drafter_fault)

    def lose_weights(self, fault: str) -> None:
        """Say that the weights are no policy's, and so neither are the drafter's."""
        self.weights_fault = self.drafter_fault = fault

    def take_weights(self) -> None:
        """Say that a policy's weights have arrived, all of them."""
        self.weights_version += 1
        self.weights_fault = self.drafter_fault = None

    def turn_off_drafter(self, fault: str) -> None:
        """Stop drafting in this engine, loudly. The engine goes on; no sample is lost or changed."""
        self.drafter_fault = fault
        self.num_drafter_faults += 1
        logger.error("the self-drafter failed and is turned off in this engine; decoding goes on plainly: %s", fault)

    def agree(self, report: DrafterReport) -> None:
        """Stop where another rank of the engine must: ranks generate, and draft, together or not at all."""
        self.weights_version, self.weights_fault = report.weights_version, report.weights_fault
        if self.drafter_fault is None and report.drafter_fault is not None:
            self.turn_off_drafter(report.drafter_fault)


def _of_first(faults: Sequence[str | None]) -> str | None:
    for rank, fault in enumerate(faults):
        if fault is not None:
            return f"on rank {rank}: {fault}" if rank else fault
    return None


class DrafterHealth:
    """Keeps the last report, and the acceptance of first drafts since the weights it speaks of arrived.

    Acceptance is looked at in consecutive windows. It trips once, and stays tripped until new weights arrive.

    Attributes:
        is_stale: Acceptance shows that the drafter does not follow the policy.
    """

    def __init__(self) -> None:
        self._report = DrafterReport()
        self.forget()

    def forget(self) -> None:
        """Forget what was accepted so far: it says nothing of what comes."""
        self.is_stale = False
        self._num_judged = self._num_accepted = 0

    def why_not(self) -> str | None:
        """Return the reason not to draft, as it stands in the metrics; None where drafting may go on."""
        if self._report.drafter_fault is not None:
            return "drafter_fault"
        return "drafter_stale" if self.is_stale else None

    def take_report(self, report: DrafterReport) -> bool:
        """Believe the worker.

        Returns:
            Whether it has other weights than in the report before: what was known of the drafter is then forgotten.
        """
        has_new_weights = report.weights_version != self._report.weights_version
        self._report = report
        if has_new_weights:
            self.forget()
        return has_new_weights

    def observe_first_drafts(self, num_judged: int, num_accepted: int) -> None:
        """Count one tick's first drafts of requests whose sampling the drafter follows in every respect."""
        self._num_judged += num_judged
        self._num_accepted += num_accepted
        if self._num_judged < _WINDOW_DRAFTS:
            return
        share, num_judged = self._num_accepted / self._num_judged, self._num_judged
        self._num_judged = self._num_accepted = 0
        if share < _SMALLEST_ACCEPTANCE and not self.is_stale:
            self.is_stale = True
            logger.error(
                "the drafter does not follow the policy: %.0f%% of the last %d first drafts were accepted. Its weights "
                "are stale or damaged; drafting is off in this engine until the next weight sync.",
                100 * share,
                num_judged,
            )
