"""A backend for vLLM's native weight transfer that runs on a CPU: the trainer names a checkpoint's files.

vLLM's own backends move tensors between GPUs. Everything but the transport is theirs: the worker's session, the
layerwise reload around it, and `model.load_weights` for every chunk.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

BACKEND = "files"


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing to agree on."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """One chunk: tensors `start` to `stop` of a checkpoint on disk."""

    path: str
    start: int = 0
    stop: int | None = None


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """What vLLM's dense backends do, with files in the place of a network."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo
    supports_draft_weight_update = True

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """No peer to meet."""

    def start_weight_update(self) -> None:
        """As vLLM's NCCL backend."""
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """As vLLM's NCCL backend."""
        finalize_layerwise_reload(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Without stock's wait for an accelerator, which raises where there is none."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """In a buffer that is overwritten afterwards, as a network's is."""
        chunk = tensors(update_info.path)[update_info.start : update_info.stop]
        self.model.load_weights(chunk)
        for _, tensor in chunk:
            tensor.fill_(torch.nan if tensor.is_floating_point() else -1)

    def shutdown(self) -> None:
        """Nothing to close."""


def tensors(path: str | Path) -> list[tuple[str, torch.Tensor]]:
    """A checkpoint's tensors, file by file."""
    return [item for file in sorted(Path(path).glob("*.safetensors")) for item in load_file(file).items()]


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, FileWeightTransferEngine)
