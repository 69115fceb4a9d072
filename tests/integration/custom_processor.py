"""A user's own logits processor, named by its dotted path in an engine's arguments."""

from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

MULTIPLES_OF = "multiples_of"


class MultiplesProcessor(AdapterLogitsProcessor):
    """Leaves only multiples of a number, for requests that name one in their `extra_args`."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        """The processor of one request, or None."""
        step = (params.extra_args or {}).get(MULTIPLES_OF)
        if step is None:
            return None

        def process(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            left = torch.full_like(logits, -torch.inf)
            left[::step] = logits[::step]
            return left

        return process
