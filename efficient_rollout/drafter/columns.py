"""One column of a weight: every row at one input, exact through any kernel, and cheap to read and to compare.

A kernel's product with a vector that is 1 at one input and 0 elsewhere is that column of what it really multiplies by.
One term alone is no zero, so that no order of adding rounds it.
"""

import zlib
from collections.abc import Callable

import torch

# The name of a last tensor that a sender may send: what `checksum` gives of each before it, in their order.
SENT = "efficient_rollout.checksums"
# A prime: places of successive turns lie far apart, and all come by.
_STRIDE = 2654435761
# Weight syncs in which every name is due once: asking all of them in each would take a tenth of a sync on a CPU.
PERIOD = 8
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def place(name: str, count: int, turn: int = 0) -> int:
    """Return one of `count` places, that of this name; another in every turn."""
    return (zlib.crc32(name.encode()) + turn * _STRIDE) % count


def is_due(name: str, turn: int) -> bool:
    """Tell whether this name's turn is this one; each has one in `PERIOD`."""
    return place(name, PERIOD, turn) == 0


def multiplied(multiply: Callable[[torch.Tensor], torch.Tensor], column: int, like: torch.Tensor) -> torch.Tensor:
    """Return a column of the weight that `multiply` multiplies [1, in_features] by, plus its bias.

    `like` is a vector [in_features] of the input's dtype, on its device.
    """
    x = torch.zeros_like(like)
    x[column] = 1
    return multiply(x.unsqueeze(0))[0]


def num_differing(held: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Count the values that differ, on the device. What is too small for a normal float32 is as good as zero."""
    tiny = torch.finfo(torch.float32).tiny
    # What is no number equals nothing.
    return (~((held.float() - expected.to(held.dtype).float()).abs() <= tiny)).sum()


def checksum(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the checksum of one column, which every row has a part in, as an int64 on the tensor's device.

    The same name, shape and bits have the same, wherever it is computed; a tensor with one axis counts whole.
    """
    values = tensor.detach().reshape(-1) if tensor.dim() < 2 else tensor.detach().reshape(tensor.shape[0], -1)
    if values.dim() > 1:
        values = values[:, place(name, values.shape[1])]
    words = values.contiguous().view(_WORDS[values.element_size()]).long()
    return (words * torch.arange(1, 2 * len(words), 2, device=words.device)).sum()
