"""veRL's server adapter, with a weight-transfer socket that no other job on the host shares."""

from collections.abc import AsyncIterator
from typing import Any

import ray
import torch
from verl.workers.rollout.utils import ensure_async_iterator
from verl.workers.rollout.vllm_rollout import ServerAdapter

from efficient_rollout.drafter import columns
from efficient_rollout.errors import UnsupportedVersionError


def unique_job_id() -> str:
    """Return Ray's job id, with the node's.

    Job ids count from 1 in every Ray cluster, so two clusters on one host would share a socket by job id alone.
    """
    context = ray.get_runtime_context()
    return f"{context.get_job_id()}-{context.get_node_id()[:12]}"


class EfficientServerAdapter(ServerAdapter):
    """Is the trainer's end of the weight transfer; what it sends, it signs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.zmq_handle = on_this_node(self.zmq_handle, ray.get_runtime_context().get_job_id(), unique_job_id())

    async def update_weights(self, weights: Any, *args: Any, wire_format: str = "named_tensors", **kwargs: Any) -> None:
        """Do as stock does; of whole tensors, checksums follow as a last one."""
        if wire_format == "named_tensors":
            weights = signed(weights)
        await super().update_weights(weights, *args, wire_format=wire_format, **kwargs)


async def signed(weights: Any) -> AsyncIterator[tuple[str, torch.Tensor]]:
    """Yield the same named tensors, and behind them the checksum of each, computed here (`columns.SENT`)."""
    sums, device = [], None
    async for name, tensor in ensure_async_iterator(weights):
        sums.append(columns.checksum(name, tensor))
        device = tensor.device
        yield name, tensor
    if sums:
        yield columns.SENT, torch.stack([one.to(device) for one in sums])


def on_this_node(zmq_handle: str, job_id: str, unique_id: str) -> str:
    """Return the handle of a socket, with the job's id on this node in the place of veRL's own.

    Raises:
        UnsupportedVersionError: The handle has no such id: engine workers would wait at another socket, for ever.
    """
    if zmq_handle.count(f"-{job_id}-") != 1:
        raise UnsupportedVersionError(
            f"veRL names the socket of a weight transfer {zmq_handle}, and Ray calls the job {job_id}, which this "
            "package looks for there between hyphens, once, so that engine workers find the socket. Install a tested "
            "version of veRL"
        )
    return zmq_handle.replace(f"-{job_id}-", f"-{unique_id}-")
