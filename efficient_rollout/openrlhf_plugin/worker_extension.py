"""Weights in: OpenRLHF sends one parameter a call, and the drafter follows when the last has come."""

from collections.abc import Sequence
from typing import Any

import torch
from openrlhf.trainer.ray.utils import get_physical_gpu_id
from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap

from efficient_rollout.drafter import columns
from efficient_rollout.engine.weights.gloo_group import GlooGroup
from efficient_rollout.engine.weights.sync import WeightSync
from efficient_rollout.errors import WeightSyncError


class EfficientWorkerWrap(WorkerWrap):
    """Is OpenRLHF's worker extension, with a weight sync that survives vLLM's repacked weights and requantizes.

    A sync begins with the first parameter and ends with the one that OpenRLHF marks as the last (`empty_cache`).
    """

    _openrlhf_sync: WeightSync | None = None
    _checksums_sent: list[int] | None = None

    def init_process_group(self, *args: Any, **kwargs: Any) -> None:
        """Do as stock does; on a CPU, join the trainer's group through gloo."""
        if self.device.type != "cpu":
            super().init_process_group(*args, **kwargs)
            return
        host, port, rank_offset, world_size, *_ = args
        self._model_update_with_ray = False
        self._model_update_group: Any = GlooGroup(host, port, torch.distributed.get_rank() + rank_offset, world_size)

    def expect_checksums(self, checksums: list[int] | None) -> None:
        """Hold the next weight sync to what its sender computed of each tensor, in the order of sending."""
        self._checksums_sent = checksums

    def update_weight(self, name: str, dtype: torch.dtype, shape: Sequence[int], empty_cache: bool = False) -> None:
        """Receive one parameter from the trainer's first rank, and load it.

        Raises:
            WeightSyncError: It is not the policy's, has another dtype than the engine's weights, or came before.
        """
        weight = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        self._receive(weight)
        self._take(name, weight, is_last=empty_cache)

    def _receive(self, weight: torch.Tensor) -> None:
        if self._model_update_with_ray:
            import ray.util.collective as collective

            collective.broadcast(weight, 0, group_name=self._model_update_group)
        else:
            stream = torch.cuda.current_stream() if weight.is_cuda else None
            self._model_update_group.broadcast(weight, src=0, stream=stream)

    def update_weight_cuda_ipc(
        self, name: str, _dtype: Any, _shape: Any, ipc_handles: dict[str, Any], empty_cache: bool = False
    ) -> None:
        """Load one parameter out of the memory of the trainer's process on the same GPU; raise as `update_weight`."""
        rebuild, arguments = ipc_handles[get_physical_gpu_id()]
        # The device's number in this process; the trainer's may see other devices.
        arguments = [*arguments[:6], self.device.index, *arguments[7:]]
        self._take(name, rebuild(*arguments), is_last=empty_cache)
        torch.cuda.synchronize()

    def _take(self, name: str, weight: torch.Tensor, *, is_last: bool) -> None:
        sync = self._sync_for(name)
        if weight.dtype != self.model_config.dtype:
            raise sync.fail(
                WeightSyncError(f"the trainer sends {name} as {weight.dtype}, the engine has {self.model_config.dtype}")
            )
        sync.load([(name, weight)])
        self._names.add(name)
        if is_last:
            sent, self._checksums_sent = self._checksums_sent, None
            if sent is not None:
                sync.load([(columns.SENT, torch.tensor(sent, device=weight.device))])
            sync.finish()

    def _sync_for(self, name: str) -> WeightSync:
        sync = self._openrlhf_sync
        if sync is not None and sync is self.open_weight_sync:
            if name in self._names:
                raise sync.fail(
                    WeightSyncError(f"{name} came a second time: a sync began before the one before it had ended")
                )
            return sync
        self._openrlhf_sync = self.weight_sync(self)
        self._openrlhf_sync.begin()
        self._names: set[str] = set()
        return self._openrlhf_sync
