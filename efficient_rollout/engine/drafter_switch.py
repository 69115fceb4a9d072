"""How a drafter is turned off in an engine, whichever model runner it drafts in."""

import logging

from efficient_rollout.engine.ranks import DrafterFault

logger = logging.getLogger(__name__)


class DrafterSwitch:
    """Before one of vLLM's drafter classes among the bases.

    Attributes:
        fault: Why the drafter is off in this engine; None while it is on.
        num_faults: Since the statistics were taken last.
    """

    fault: str | None = None
    num_faults = 0

    def turn_off(self, fault: str) -> None:
        """Stop drafting in this engine, loudly. The engine goes on; no sample is lost or changed."""
        self.fault = fault
        self.num_faults += 1
        logger.error("the self-drafter failed and is turned off in this engine; decoding goes on plainly: %s", fault)

    def turn_off_for(self, error: Exception) -> None:
        """The same, for what a chain raised."""
        self.turn_off(str(error) if isinstance(error, DrafterFault) else f"{type(error).__name__}: {error}")
