"""The worker extension of an engine on a CPU, whose weights come through gloo."""

from typing import Any

import torch

from efficient_rollout.engine.weights.gloo_group import GlooGroup
from efficient_rollout.openrlhf_plugin.worker_extension import EfficientWorkerWrap


class CpuWorkerWrap(EfficientWorkerWrap):
    """Receives without CUDA's streams."""

    def init_process_group(
        self,
        master_address: str,
        master_port: int,
        rank_offset: int,
        world_size: int,
        group_name: str,  # noqa: ARG002
        backend: str = "gloo",  # noqa: ARG002
        use_ray: bool = False,  # noqa: ARG002
    ) -> None:
        """Join the trainer's group."""
        rank = torch.distributed.get_rank() + rank_offset
        self._model_update_group: Any = GlooGroup(master_address, master_port, rank, world_size)

    def _receive(self, weight: torch.Tensor) -> None:
        self._model_update_group.broadcast(weight, src=0)
