"""What the ranks of a tensor-parallel engine must do alike: all of them draft a chain, or none does."""

from collections.abc import Callable, Iterable

import torch
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)

from efficient_rollout.drafter.packed_weights import PackedWeights

Drawn = tuple[torch.Tensor, torch.Tensor]


class DrafterFault(RuntimeError):
    """A chain that failed, on whichever rank."""


class Ranks:
    """One chain at a time, on every rank of an engine.

    Each rank holds a part of every layer, and waits for the others' parts many times a step. So what fails on one
    must not end the chain there: its products become zeros (`PackedLinear.faults`), its draws the first token, and at
    the end the ranks tell one another, once. Every rank draws the same tokens from the same gathered logits with the
    same noise; a generator that a failing rank left standing is wound back on all.

    An exception anywhere else is taken for one that every rank meets, because every rank computes it from the same
    data. An engine of one rank has nobody to wait for: there the first fault raises.

    Args:
        packed: The drafter's weights.
        generator: Of the noise of requests without a seed, seeded alike on every rank.
    """

    def __init__(self, packed: PackedWeights, generator: torch.Generator) -> None:
        self._size, self._rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        self._generator = generator
        self._faults: list[str] = []
        self._held: list[tuple[torch.Generator, torch.Tensor]] = []
        if self._size > 1:
            packed.product_faults = self._faults

    def begin(self, generators: Iterable[torch.Generator]) -> None:
        """Begin a chain whose requests have these generators of their own."""
        if self._size > 1:
            self._faults.clear()
            self._held = [(generator, generator.get_state()) for generator in (self._generator, *generators)]

    def draw(self, draw: Callable[[torch.Tensor], Drawn], logits: torch.Tensor) -> Drawn:
        """Draw a token per request.

        Args:
            draw: Takes `logits`; returns tokens int64 [num_requests] and their distribution [num_requests, vocab].
            logits: [num_requests, vocab], the same on every rank.
        """
        try:
            return draw(logits)
        except Exception as error:
            if self._size == 1:
                raise
            self._faults.append(f"{type(error).__name__}: {error}")
            return torch.zeros(len(logits), dtype=torch.int64, device=logits.device), torch.zeros_like(logits)

    def end(self) -> None:
        """End the chain on every rank.

        Raises:
            DrafterFault: It failed on one.
        """
        if self._size == 1:
            return
        has_failed = torch.zeros(self._size)
        has_failed[self._rank] = bool(self._faults)
        failed = tensor_model_parallel_all_reduce(has_failed).nonzero().flatten().tolist()
        if not failed:
            return
        for generator, state in self._held:
            generator.set_state(state)
        others = ", ".join(str(rank) for rank in failed)
        raise DrafterFault(self._faults[0] if self._faults else f"it failed on rank {others}, whose log says why")
