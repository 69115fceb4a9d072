"""What a weight sync brings for each parameter of a policy, checked as it comes.

vLLM's loaders know which parameter a checkpoint's tensor belongs to. But they cut some tensors that are too large,
leave a fused parameter half filled without a word, count a tensor that comes twice for the one that did not, and take
anything for a number. So every loader call of a sync is watched.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import LinearBase, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from efficient_rollout.errors import WeightSyncError

_QKV = {"q": 0, "k": 1, "v": 2}  # vLLM's names for the parts of a fused query, key and value projection
_MAX_LISTED = 5


@dataclass(slots=True)
class _Parameter:
    """Describes a parameter of the model, what a checkpoint holds for it, and what has come.

    Attributes:
        name: The model's own name. A fused parameter takes several tensors of a checkpoint, its parts.
        shape: Of all that a checkpoint holds for it, this rank's and the other ranks'.
        part_rows: Rows of each part, in vLLM's order; empty where it is not fused.
        num_ranks: Ranks that may hold a part each of what a checkpoint holds, where `shape` is of this rank's part.
        arrived: Names of the tensors that came, each with its part (None: unnamed) and its number of values.
    """

    name: str
    shape: tuple[int, ...]
    part_rows: tuple[int, ...] = ()
    num_ranks: int = 1
    arrived: list[tuple[str, Any, int]] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, layer: torch.nn.Module, tensor: torch.Tensor) -> "_Parameter":
        """Describe a parameter of a layer that has not been packed."""
        shape = tuple(tensor.shape)
        if isinstance(layer, VocabParallelEmbedding):
            # vLLM pads the vocabulary; no checkpoint has the padding.
            return cls(name, (layer.org_vocab_size, *shape[1:]))
        if isinstance(layer, RowParallelLinear):
            return cls(name, (shape[0], layer.input_size) if len(shape) > 1 else shape)
        if isinstance(layer, LinearBase):
            rows = _part_rows(layer)
            return cls(name, (sum(rows) or layer.output_size, *shape[1:]), rows)
        # A layer of another kind, of a norm for one, is split where its model says so.
        return cls(name, shape, num_ranks=get_tensor_model_parallel_world_size())

    def num_values(self, loaded: torch.Tensor) -> int:
        """Count the values of a tensor of the checkpoint, as those of `shape` are."""
        whole = loaded.numel()
        return whole // self.num_ranks if whole == self.num_ranks * math.prod(self.shape) else whole

    @property
    def num_missing(self) -> int:
        """Return the number of values that have not come."""
        return math.prod(self.shape) - sum(num_values for _, _, num_values in self.arrived)

    def shape_of(self, part: Any) -> tuple[int, ...]:
        """Return the shape of what a checkpoint holds for one part."""
        parts = part if isinstance(part, tuple) else (_QKV.get(part, part),)
        if not all(isinstance(index, int) and index < len(self.part_rows) for index in parts):
            return self.shape
        return (sum(self.part_rows[index] for index in parts), *self.shape[1:])

    def earlier(self, part: Any, num_values: int) -> str:
        """Name the tensors that came before for what `num_values` more for `part` would fill."""
        of_part = [name for name, other, _ in self.arrived if part is not None and other == part]
        return ", ".join(of_part or [name for name, _, _ in self.arrived if num_values > self.num_missing])

    def __str__(self) -> str:
        if not self.arrived:
            return self.name
        names = ", ".join(name for name, _, _ in self.arrived)
        total = math.prod(self.shape)
        return f"{self.name} (only {total - self.num_missing} of its {total} values came, with {names})"


class Arrivals:
    """Watches the tensors of one weight sync.

    Args:
        model: The policy, ready to be loaded again layer by layer.
        expected: Names of the parameters that must get new values.
        is_exact: Whether values can be counted: every parameter is whole, dense and unquantized, as all are that can be
            drafted for. Otherwise a parameter counts as loaded once anything came for it.

    Attributes:
        num_tensors: Tensors given to the model so far.
    """

    def __init__(self, model: torch.nn.Module, expected: set[str], *, is_exact: bool) -> None:
        self.num_tensors = 0
        self._is_exact = is_exact
        self._name, self._shape = "", torch.Size()
        self._expected: list[_Parameter] = []
        self._watched: list[tuple[torch.Tensor, Callable[..., Any], Callable[..., Any]]] = []
        for path, layer in model.named_modules():
            for name, tensor in layer.named_parameters(recurse=False):
                parameter = _Parameter.of(f"{path}.{name}" if path else name, layer, tensor)
                if parameter.name in expected:
                    self._expected.append(parameter)
                self._watch(tensor, parameter)

    def _watch(self, tensor: torch.Tensor, parameter: _Parameter) -> None:
        load = getattr(tensor, "weight_loader", default_weight_loader)
        signature = inspect.signature(load)

        # vLLM's reload looks for the loader below its own wrapper by the wrapper's name and `__wrapped__`.
        @functools.wraps(load)
        def watched(*args: Any, **kwargs: Any) -> Any:
            _, loaded, *part = signature.bind(*args, **kwargs).arguments.values()
            self._admit(parameter, loaded, part[0] if part else None)
            try:
                return load(*args, **kwargs)
            except Exception as error:
                raise self._misfit(parameter, part[0] if part else None, error) from error

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
            self._name, self._shape = name, tensor.shape
            self.num_tensors += 1
            yield name, tensor

    def _admit(self, parameter: _Parameter, loaded: torch.Tensor, part: Any) -> None:
        if not _is_finite(loaded):
            raise WeightSyncError(f"{self.current} holds values that are not finite numbers")
        num_values = parameter.num_values(loaded)
        if self._is_exact:
            if num_values > math.prod(parameter.shape_of(part)):
                raise self._misfit(parameter, part)
            earlier = parameter.earlier(part, num_values)
            if earlier:
                raise WeightSyncError(f"{self.current} is for values of {parameter.name} that {earlier} brought before")
        parameter.arrived.append((self._name, part, num_values))

    def _misfit(self, parameter: _Parameter, part: Any, error: Exception | None = None) -> WeightSyncError:
        of_part = "" if part is None else f"part {part!r} of "
        why = "" if error is None else f" ({type(error).__name__}: {error})"
        return WeightSyncError(
            f"{self.current} was not taken for {of_part}{parameter.name}, "
            f"where {list(parameter.shape_of(part))} is expected{why}"
        )

    def require_complete(self) -> None:
        """Raise unless every expected parameter got all its values.

        Raises:
            WeightSyncError: Names those that did not.
        """
        missing = [p for p in self._expected if (p.num_missing if self._is_exact else not p.arrived)]
        if missing:
            listed = [str(parameter) for parameter in missing[:_MAX_LISTED]]
            if len(missing) > _MAX_LISTED:
                listed.append(f"and {len(missing) - _MAX_LISTED} more")
            raise WeightSyncError(
                f"{self.num_tensors} tensors came, and {len(missing)} of the policy's {len(self._expected)} parameters "
                f"did not get all their values: {'; '.join(listed)}"
            )


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
