"""A user's logits processor that spoils what the drafter sees, and nothing that a token is taken from."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

# The engine has stopped asking the drafter when it drafts in none of so many ticks.
_NUM_PLAIN_TICKS = 20


class Spoiling(AdapterLogitsProcessor):
    """First the drafter strays, until the engine stops asking it; when it is asked again, it fails."""

    has_strayed = False
    num_plain_ticks = 0

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        """Stock, once a tick."""
        self.num_plain_ticks += 1
        super().update_state(batch_update)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Spoiled where the drafter asks."""
        if not _is_drafting():
            return logits
        if self.has_strayed and self.num_plain_ticks > _NUM_PLAIN_TICKS:
            raise RuntimeError("deliberate fault")
        self.has_strayed, self.num_plain_ticks = True, 0
        return logits.roll(1, dims=-1)

    def new_req_logits_processor(self, _params: Any) -> Callable[..., torch.Tensor]:
        """Of every request, so that it is asked."""
        return lambda _outputs, logits: logits


def _is_drafting() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith("engine/cpu/proposer.py"):
            return True
        frame = frame.f_back
    return False
