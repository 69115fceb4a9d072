"""OpenRLHF's worker extension with its calls made from a checkpoint on disk, in the place of a trainer."""

from pathlib import Path
from typing import Any

from efficient_rollout.openrlhf_plugin.worker_extension import EfficientWorkerWrap


class FromDisk(EfficientWorkerWrap):
    """Receives what `send` holds instead of a broadcast."""

    def _receive(self, weight: Any) -> None:
        weight.copy_(self._sent)

    def send(self, path: str, start: int = 0, stop: int | None = None, dtype: str | None = None) -> None:
        """The parameters of a checkpoint from `start` to `stop`, in its order, each by a call as a trainer makes it."""
        import safetensors.torch
        import torch

        tensors = list(safetensors.torch.load_file(Path(path) / "model.safetensors").items())
        for index, (name, tensor) in list(enumerate(tensors))[start:stop]:
            self._sent = tensor if dtype is None else tensor.to(getattr(torch, dtype))
            is_last = index == len(tensors) - 1
            self.update_weight(name, self._sent.dtype, self._sent.shape, empty_cache=is_last)
