"""Whether a layer computes with the values that came: one column of its weight, before the load and after all of it."""

import inspect

import torch
from vllm.model_executor.layers.linear import LinearBase, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from efficient_rollout.drafter import columns

# Another loader may change values, or place them where only its model knows.
_LOADERS_OF = ("vllm.model_executor.layers.linear", "vllm.model_executor.layers.vocab_parallel_embedding")


class HeldColumn:
    """Is one column of a parameter on this rank: as it came, and as its layer computes with it.

    A parameter with one axis counts whole.

    Args:
        layer: That has the parameter.
        tensor: The parameter, or one of its shape.
        part_rows: Rows of all ranks that a checkpoint holds for each part of the parameter, in vLLM's order.
        turn: Which weight sync this is.

    Attributes:
        is_due: Whether it is looked at in this sync.
        is_known: Whether what its layer must hold can be told from what comes.
    """

    def __init__(
        self, name: str, layer: torch.nn.Module, tensor: torch.Tensor, part_rows: tuple[int, ...], turn: int
    ) -> None:
        self.num_values, self.is_due = tensor.numel(), columns.is_due(name, turn)
        self.layer, self._name, self._dtype = layer, name, tensor.dtype
        self._part_rows, self._own_rows = part_rows, _own_rows(layer, part_rows)
        self._num_inputs = tensor.shape[1] if tensor.dim() == 2 else None
        self._column = columns.place(name, self._num_inputs, turn // columns.PERIOD) if self._num_inputs else None
        self._pieces: dict[int, torch.Tensor] = {}
        self.is_known = _is_plain(tensor) and tensor.dim() in (1, 2)

    def take(self, loaded: torch.Tensor, parts: tuple[int, ...] | None) -> None:
        """Note what came for some parts, None for all; its memory may be used again afterwards."""
        if not self.is_due:
            return
        parts = tuple(range(len(self._part_rows))) if parts is None else parts
        wanted = sum(self._part_rows[part] for part in parts)
        if not self.is_known or loaded.dim() != (1 if self._column is None else 2) or loaded.shape[0] != wanted:
            self.is_known = False
            return
        if self._column is not None:
            is_split = isinstance(self.layer, RowParallelLinear) and loaded.shape[1] != self._num_inputs
            loaded = loaded[:, self._column + (self.layer.tp_rank * self._num_inputs if is_split else 0)]
        for part, rows in zip(parts, loaded.split([self._part_rows[part] for part in parts]), strict=True):
            start, stop = self._own_rows[part]
            self._pieces[part] = rows[start:stop].to(self._dtype, copy=True)

    def differing(self, layer: torch.nn.Module) -> torch.Tensor | None:
        """Count values that its layer, or a head tied to it, holds otherwise than they came; None: cannot be told."""
        if not self.is_known or len(self._pieces) < len(self._part_rows):
            self.is_known = False
            return None
        expected = torch.cat([self._pieces[part] for part in sorted(self._pieces)])
        return columns.num_differing(self._held(layer, expected)[: len(expected)], expected)

    def _held(self, layer: torch.nn.Module, like: torch.Tensor) -> torch.Tensor:
        parameter = getattr(layer, self._name.rpartition(".")[2])
        if self._column is None:
            return parameter.data
        # On a CPU a product reads a pack of the weight, elsewhere the weight.
        if isinstance(layer, LinearBase | ParallelLMHead) and parameter.device.type == "cpu":
            x = like.new_zeros(self._num_inputs)
            return columns.multiplied(lambda rows: layer.quant_method.apply(layer, rows), self._column, x)
        return parameter.data[:, self._column]

    def __str__(self) -> str:
        return self._name if self._column is None else f"{self._name} (column {self._column})"


def _own_rows(layer: torch.nn.Module, part_rows: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return where this rank's rows of each part begin and end."""
    if isinstance(layer, VocabParallelEmbedding):
        return [(layer.shard_indices.org_vocab_start_index, layer.shard_indices.org_vocab_end_index)]
    if not isinstance(layer, LinearBase):
        return [(0, rows) for rows in part_rows]
    owned = []
    for rows, num_own in zip(part_rows, layer.output_partition_sizes, strict=True):
        num_copies = max(num_own * layer.tp_size // rows, 1)  # ranks that have the same rows
        first = layer.tp_rank // num_copies * num_own
        owned.append((first, first + num_own))
    return owned


def _is_plain(tensor: torch.Tensor) -> bool:
    load = inspect.unwrap(getattr(tensor, "weight_loader", default_weight_loader))
    return load is default_weight_loader or load.__module__ in _LOADERS_OF
