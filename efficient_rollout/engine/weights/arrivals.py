"""What a weight sync brings for each parameter of a policy, checked as it comes.

vLLM's loaders know which parameter a checkpoint's tensor belongs to. But they cut some tensors that are too large,
leave a fused parameter half filled without a word, count a tensor that comes twice for the one that did not, and take
anything for a number. So every loader call of a sync is watched, and at the end the model is asked what it holds.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import LinearBase, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from efficient_rollout.drafter import columns
from efficient_rollout.engine.weights.held import HeldColumn
from efficient_rollout.errors import WeightSyncError

_MODULUS = 10**9  # read by people, and exact in any logger's numbers
_QKV = {"q": 0, "k": 1, "v": 2}  # vLLM's names for the parts of a fused query, key and value projection
_MAX_LISTED = 5


class _Parameter:
    """Describes a parameter of a layer that has not been packed, what a checkpoint holds for it, and what has come.

    A fused parameter takes several tensors of a checkpoint, its parts.

    Attributes:
        shape: Of all that a checkpoint holds for it, this rank's and the other ranks'.
        part_rows: Rows of each part, in vLLM's order; empty where it is not fused.
        num_ranks: Ranks that may hold a part each of what a checkpoint holds, where `shape` is of this rank's part.
        arrived: Names of the tensors that came, each with its part (None: unnamed) and its number of values.
    """

    def __init__(self, name: str, layer: torch.nn.Module, tensor: torch.Tensor, turn: int) -> None:
        shape, rows, self.num_ranks = tuple(tensor.shape), (), 1
        if isinstance(layer, VocabParallelEmbedding):
            # vLLM pads the vocabulary; no checkpoint has the padding.
            shape = (layer.org_vocab_size, *shape[1:])
        elif isinstance(layer, RowParallelLinear):
            shape = (shape[0], layer.input_size) if len(shape) > 1 else shape
        elif isinstance(layer, LinearBase):
            rows = _part_rows(layer)
            shape = (sum(rows) or layer.output_size, *shape[1:])
        else:  # of a norm for one: split where its model says so
            self.num_ranks = get_tensor_model_parallel_world_size()
        self.name, self.shape, self.part_rows = name, shape, rows
        self.column = HeldColumn(name, layer, tensor, rows or shape[:1], turn)
        self.arrived: list[tuple[str, Any, int]] = []

    def num_values_in(self, loaded: torch.Tensor) -> int:
        """Count the values of a tensor of the checkpoint, as those of `shape` are."""
        whole = loaded.numel()
        return whole // self.num_ranks if whole == self.num_ranks * self.num_values else whole

    @property
    def num_values(self) -> int:
        """Return the number of values of `shape`."""
        return math.prod(self.shape)

    @property
    def num_arrived(self) -> int:
        """Return the number of values that have come."""
        return sum(num_values for _, _, num_values in self.arrived)

    def parts_of(self, part: Any) -> tuple[int, ...] | None:
        """Return the numbers of the parts that vLLM names so; None where it names none."""
        parts = part if isinstance(part, tuple) else (_QKV.get(part, part),)
        is_known = all(isinstance(index, int) and index < len(self.part_rows) for index in parts)
        return parts if is_known else None

    def shape_of(self, part: Any) -> tuple[int, ...]:
        """Return the shape of what a checkpoint holds for one part."""
        parts = self.parts_of(part)
        return self.shape if parts is None else (sum(self.part_rows[index] for index in parts), *self.shape[1:])

    def earlier(self, part: Any, num_values: int) -> str:
        """Name the tensors that came before for what `num_values` more for `part` would fill."""
        of_part = [name for name, other, _ in self.arrived if part is not None and other == part]
        is_full = self.num_arrived + num_values > self.num_values
        return ", ".join(of_part or [name for name, _, _ in self.arrived if is_full])

    def __str__(self) -> str:
        if not self.arrived:
            return self.name
        names = ", ".join(name for name, _, _ in self.arrived)
        return f"{self.name} (only {self.num_arrived} of its {self.num_values} values came, with {names})"


class Arrivals:
    """Watches the tensors of one weight sync.

    Args:
        model: The policy, ready to be loaded again layer by layer.
        expected: Names of the parameters that must get new values.
        is_exact: Whether values can be counted: every parameter is whole, dense and unquantized, as all are that can be
            drafted for. Otherwise a parameter counts as loaded once anything came for it.
        turn: The number of the sync: other values are looked at in each.

    Attributes:
        num_tensors: Tensors given to the model so far.
        is_as_sent: Whether the sender's own checksums came along, and are those of what came.
    """

    def __init__(self, model: torch.nn.Module, expected: set[str], *, is_exact: bool, turn: int) -> None:
        self.num_tensors, self.is_as_sent = 0, False
        self._model, self._is_exact = model, is_exact
        self._checksums: dict[str, torch.Tensor] = {}
        self._name, self._shape = "", torch.Size()
        self._expected: list[_Parameter] = []
        self._watched: list[tuple[torch.Tensor, Callable[..., Any], Callable[..., Any]]] = []
        for path, layer in model.named_modules():
            for name, tensor in layer.named_parameters(recurse=False):
                parameter = _Parameter(f"{path}.{name}" if path else name, layer, tensor, turn)
                if parameter.name in expected:
                    self._expected.append(parameter)
                self._watch(tensor, parameter)

    def _watch(self, tensor: torch.Tensor, parameter: _Parameter) -> None:
        load = getattr(tensor, "weight_loader", default_weight_loader)
        signature = inspect.signature(load)

        # vLLM's reload looks for the loader below its own wrapper by the wrapper's name and `__wrapped__`.
        @functools.wraps(load)
        def watched(*args: Any, **kwargs: Any) -> Any:
            _, loaded, *rest = signature.bind(*args, **kwargs).arguments.values()
            part = rest[0] if rest else None
            self._admit(parameter, loaded, part)
            try:
                return load(*args, **kwargs)
            except Exception as error:
                raise self._misfit(parameter, part, error) from error

        tensor.weight_loader = watched
        self._watched.append((tensor, watched, load))

    def close(self) -> None:
        """Stop watching."""
        for tensor, watched, load in self._watched:
            if tensor.weight_loader is watched:
                tensor.weight_loader = load

    @property
    def current(self) -> str:
        """Return name and shape of the tensor that is being loaded, or was last."""
        return f"{self._name} {list(self._shape)}"

    def named(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the same tensors, each known by its name while the model takes it."""
        for name, tensor in weights:
            if name == columns.SENT:
                self._compare(tensor)
                continue
            self._name, self._shape = name, tensor.shape
            self.num_tensors += 1
            self._checksums[name] = columns.checksum(name, tensor)
            yield name, tensor

    def _compare(self, sent: torch.Tensor) -> None:
        """Raise WeightSyncError unless what the sender computed, in the order in which it sent, is what came."""
        names, came = list(self._checksums), list(self._checksums.values())
        num_alike = min(len(sent), len(came))
        is_other = sent[:num_alike] != torch.stack(came[:num_alike]) if num_alike else sent[:0]
        if len(sent) != len(came) or bool(is_other.any()):
            first = int(is_other.int().argmax()) if bool(is_other.any()) else num_alike
            where = names[first] if first < len(names) else f"behind {self.current}"
            raise WeightSyncError(
                f"the sender sent {len(sent)} tensors and {len(came)} came; the first whose checksum is not that of "
                f"what was sent: {where}"
            )
        self.is_as_sent = True

    def _admit(self, parameter: _Parameter, loaded: torch.Tensor, part: Any) -> None:
        if not _is_finite(loaded):
            raise WeightSyncError(f"{self.current} holds values that are not finite numbers")
        num_values = parameter.num_values_in(loaded)
        if self._is_exact:
            if num_values > math.prod(parameter.shape_of(part)):
                raise self._misfit(parameter, part)
            earlier = parameter.earlier(part, num_values)
            if earlier:
                raise WeightSyncError(f"{self.current} is for values of {parameter.name} that {earlier} brought before")
        parameter.arrived.append((self._name, part, num_values))
        parameter.column.take(loaded, parameter.parts_of(part))

    def _misfit(self, parameter: _Parameter, part: Any, error: Exception | None = None) -> WeightSyncError:
        of_part = "" if part is None else f"part {part!r} of "
        why = "" if error is None else f" ({type(error).__name__}: {error})"
        return WeightSyncError(
            f"{self.current} was not taken for {of_part}{parameter.name}, "
            f"where {list(parameter.shape_of(part))} is expected{why}"
        )

    def require_complete(self) -> None:
        """Raise WeightSyncError, which names some that did not, unless every expected parameter got all its values."""
        missing = [p for p in self._expected if (p.num_arrived != p.num_values if self._is_exact else not p.arrived)]
        if missing:
            listed = [str(parameter) for parameter in missing[:_MAX_LISTED]]
            if len(missing) > _MAX_LISTED:
                listed.append(f"and {len(missing) - _MAX_LISTED} more")
            raise WeightSyncError(
                f"{self.num_tensors} tensors came, and {len(missing)} of the policy's {len(self._expected)} parameters "
                f"did not get all their values: {'; '.join(listed)}"
            )

    @property
    def checksum(self) -> int:
        """Return one number of all that came: the same policy has the same, whatever the engine and the order."""
        return sum(int(one) for one in self._checksums.values()) % _MODULUS

    def require_held(self) -> float:
        """Raise unless the model computes with what came, each parameter that is due at one column.

        Returns:
            The share of the values that are of parameters of which this can be told.

        Raises:
            WeightSyncError: Names the parameters that hold other values.
        """
        held = [p.column for p in self._expected]
        asked = [(column, column.layer) for column in held if column.is_due]
        heads = tied_heads(self._model)
        asked += [(column, head) for column, layer in asked for head, embedding in heads if embedding is layer]
        pairs = [(column, column.differing(layer)) for column, layer in asked]
        found = [(column, number) for column, number in pairs if number is not None]
        numbers = torch.stack([number for _, number in found]).tolist() if found else []
        wrong = [f"{column}, {number} values" for (column, _), number in zip(found, numbers, strict=True) if number]
        if wrong:
            listed = "; ".join(wrong[:_MAX_LISTED])
            raise WeightSyncError(f"the policy computes with other values than came, in {len(wrong)} columns: {listed}")
        num_known = sum(column.num_values for column in held if column.is_known)
        return num_known / max(sum(column.num_values for column in held), 1)


def tied_heads(model: torch.nn.Module) -> list[tuple[ParallelLMHead, VocabParallelEmbedding]]:
    """Return the heads without a tensor of their own, which may hold a pack of the embedding's, each with that."""
    layers = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    embeddings = {id(layer.weight): layer for layer in layers if not isinstance(layer, ParallelLMHead)}
    heads = [layer for layer in layers if isinstance(layer, ParallelLMHead)]
    return [(head, embeddings[id(head.weight)]) for head in heads if id(head.weight) in embeddings]


def _part_rows(layer: LinearBase) -> tuple[int, ...]:
    """Return the rows that a checkpoint holds for each part of a fused layer; none where it is not fused."""
    if isinstance(layer, QKVParallelLinear):
        # vLLM's own sizes count a key and value head again for every rank that holds a copy.
        heads = layer.total_num_heads * layer.head_size
        keys, values = (layer.total_num_kv_heads * size for size in (layer.head_size, layer.v_head_size))
        return heads, keys, values
    return tuple(getattr(layer, "output_sizes", ()))


def _is_finite(tensor: torch.Tensor) -> bool:
    """Tell whether every value is a finite number; it reads the memory once where they all are."""
    if not tensor.is_floating_point():
        return True
    # A sum shows every NaN and infinity, but may itself overflow.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
