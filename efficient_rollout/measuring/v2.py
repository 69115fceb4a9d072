"""Workers for probing and benchmarking on vLLM's V2 model runner."""

from collections.abc import Callable

import torch

from efficient_rollout.engine.gpu.worker import GpuWorker
from efficient_rollout.measuring.recording import Recording

# Odd numbers that spread consecutive integers over 64 bits: the golden ratio, and splitmix64's second.
_SEED_FACTOR, _PLACE_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64), 0xBF58476D1CE4E5B9 - (1 << 64)
_BITS = 24


class RecordingV2(Recording):
    """Stands before a worker of the V2 runner; drafts can be made wrong on purpose, as often as is wanted."""

    def init_device(self) -> None:
        """Run the worker's own, with a drafter whose draws are spoiled as `spoil_drafts` says."""
        super().init_device()
        if self.self_drafter is not None:
            self._spoiled_share = torch.zeros((), device=self.device)
            self.self_drafter._draw = _spoiled(self.self_drafter, self.self_drafter._draw, self._spoiled_share)

    def spoil_drafts(self, share: float) -> None:
        """Draft, from now on, another token than the one that was drawn at a share of all places.

        This is for policies with random weights, whose drafts are all accepted: with a share of 0.1 they are accepted
        as those of a drafter that agrees with its policy in 0.9 of all draws, whatever was drawn before.

        Args:
            share: Of drafts, 0 to 1; which ones, is decided by their request's seed and position.
        """
        self._spoiled_share.fill_(share)


def _spoiled(
    drafter: torch.nn.Module, draw: Callable[[torch.Tensor], torch.Tensor], share: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a draw, all of it on the device, whose token becomes its neighbour at a share of all places."""

    def spoiled(logits: torch.Tensor) -> torch.Tensor:
        tokens, n = draw(logits), logits.shape[0]
        seeds = drafter.seeds[drafter.steps.states_of_rows(n).clamp(min=0).long()]
        places = drafter.input_buffers.positions[:n].long()
        mixed = (seeds * _SEED_FACTOR + places) * _PLACE_FACTOR
        # Twice, because a product's low bits tell little of its factors' high ones.
        mixed = (mixed ^ (mixed >> 29)) * _PLACE_FACTOR
        uniform = ((mixed >> 32) & ((1 << _BITS) - 1)) / float(1 << _BITS)
        return torch.where(uniform < share, (tokens + 1) % logits.shape[1], tokens)

    return spoiled


class RecordingGpuWorker(RecordingV2, GpuWorker):
    """Is the worker of measured engines on a GPU."""
