"""A group of processes that carries a trainer's weights to engines without a GPU."""

from typing import Any

import torch
from vllm.distributed.utils import stateless_init_torch_distributed_process_group


class GlooGroup:
    """Broadcasts as vLLM's PyNcclCommunicator, which without NCCL does nothing, apart from any default group."""

    def __init__(self, host: str, port: int, rank: int, world_size: int) -> None:
        self._group = stateless_init_torch_distributed_process_group(host, port, rank, world_size, "gloo")

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        """Send, or receive in place, as bytes: gloo has no bfloat16."""
        options = torch.distributed.BroadcastOptions()
        options.rootRank = src
        self._group.broadcast([tensor.detach().contiguous().view(-1).view(torch.uint8)], options).wait()
