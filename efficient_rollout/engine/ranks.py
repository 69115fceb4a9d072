"""What the ranks of a tensor-parallel engine must do alike: all of them draft a chain, or none does."""

from collections.abc import Callable

import torch
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)

from efficient_rollout.drafter.packed_weights import PackedWeights


class DrafterFault(RuntimeError):
    """Says that a chain failed, on whichever rank."""


def fault_of(error: Exception) -> str:
    """Return what is said of a chain that raised."""
    return str(error) if isinstance(error, DrafterFault) else f"{type(error).__name__}: {error}"


class Ranks:
    """Runs one chain at a time, on every rank of an engine.

    Each rank holds a part of every layer, and waits for the others' parts many times a step. So what fails on one
    must not end the chain there: its products become zeros (`PackedLinear.faults`), its draws the first token, and at
    the end the ranks tell one another, once. Every rank draws the same tokens from the same gathered logits with the
    same noise, which belongs to a request and a position.

    An exception anywhere else is taken for one that every rank meets, because every rank computes it from the same
    data. An engine of one rank has nobody to wait for: there the first fault raises.

    A captured step is replayed by every rank or by none, and nothing in it can fail on one rank and go on: so replays
    end without being asked.

    Args:
        packed: The drafter's weights, before a layer is packed.
        device: The engine's, for what ranks tell one another: vLLM's collectives of a GPU take tensors of a GPU.
    """

    def __init__(self, packed: PackedWeights, device: torch.device | None = None) -> None:
        self._device = device
        self._size, self._rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        self._faults: list[str] = []
        if self._size > 1:
            packed.product_faults = self._faults

    def begin(self) -> None:
        """Begin a chain."""
        self._faults.clear()

    def draw(self, draw: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        """Draw a token per request.

        Args:
            draw: Takes `logits`; returns tokens, int64 [num_requests].
            logits: [num_requests, vocab], the same on every rank.
        """
        try:
            return draw(logits)
        except Exception as error:
            if self._size == 1:
                raise
            self._faults.append(f"{type(error).__name__}: {error}")
            return torch.zeros(len(logits), dtype=torch.int64, device=logits.device)

    def end(self) -> None:
        """End the chain on every rank.

        Raises:
            DrafterFault: It failed on one.
        """
        if self._size == 1:
            return
        failed = self.votes().nonzero().flatten().tolist()
        if not failed:
            return
        others = ", ".join(str(rank) for rank in failed)
        raise DrafterFault(self._faults[0] if self._faults else f"it failed on rank {others}, whose log says why")

    def votes(self) -> torch.Tensor:
        """Return which ranks have failed since `begin`: float32 [ranks], 1 for one that has.

        They are on the device, from all ranks.
        """
        ranks = torch.arange(self._size, device=self._device)
        return tensor_model_parallel_all_reduce((ranks == self._rank).float() * bool(self._faults))
