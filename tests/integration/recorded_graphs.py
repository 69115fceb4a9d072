"""CUDA graphs without CUDA: what runs inside `torch.cuda.graph` is recorded, kernel by kernel, and replayed as it was.

As in a graph, nothing of Python is recorded: a replay launches the same operators and the same Triton kernels on the
same buffers, with the numbers that the host knew when they were recorded. What would be illegal in a capture, reading
the device or copying from the host, is noted.
"""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import interpreter  # noqa: F401 - first: vLLM looks for Triton once
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map
from triton.runtime.interpreter import GridExecutor
from vllm import _custom_ops
from vllm.config.compilation import CUDAGraphMode
from vllm.platforms import current_platform
from vllm.v1.worker.gpu import cudagraph_utils
from vllm.v1.worker.utils import AttentionGroup

# Operators that read the device, or take numbers from the host's memory.
_READ = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "unique", "equal", "lift_fresh")
_READERS = ("cpu", "numpy", "tolist", "__array__")
_launch = GridExecutor.__call__


class RecordedGraph:
    """In the place of `torch.cuda.CUDAGraph`.

    Attributes:
        num_replays: How often it was replayed.
    """

    def __init__(self) -> None:
        self._tape: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []
        self.num_replays = 0

    @property
    def operators(self) -> list[str]:
        """Names of the operators that were recorded, in order."""
        return [function.name() for function, *_ in self._tape if isinstance(function, torch._ops.OpOverload)]

    def record(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
        """Take what one launch was given, and what it made."""
        self._tape.append((function, args, kwargs, made))

    def replay(self) -> None:
        """Launch all of it again: what a launch made goes to those behind it, and other tensors are the same ones."""
        self.num_replays += 1
        made_again: dict[int, Any] = {}

        def anew(value: Any) -> Any:
            return made_again.get(id(value), value)

        for function, args, kwargs, made in self._tape:
            result = function(*tree_map(anew, args), **tree_map(anew, kwargs))
            pairs = zip(tree_flatten(made)[0], tree_flatten(result)[0], strict=True)
            made_again |= {id(old): new for old, new in pairs if isinstance(old, torch.Tensor)}


class Recorder(TorchDispatchMode):
    """Records into a graph while it is the current mode.

    Args:
        graph: To record into.
        host_reads: What would be illegal in a capture is added to it.
    """

    def __init__(self, graph: RecordedGraph, host_reads: list[str]) -> None:
        super().__init__()
        self.graph, self.host_reads = graph, host_reads

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and take it."""
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        masks = [value for value in tree_flatten(args[1:])[0] if getattr(value, "dtype", None) == torch.bool]
        # `where` copies a number to the device first.
        takes_number = name == "where" and not all(getattr(value, "shape", ()) for value in args)
        if name in _READ or takes_number or (name.startswith("index") and masks):
            self.host_reads.append(f"operator {name}")
        made = function(*args, **kwargs)
        self.graph.record(function, args, kwargs, made)
        return made


class Graphs:
    """What was recorded, and how.

    Attributes:
        host_reads: What would be illegal in a capture, in words.
        recorder: Of the graph that is recorded now; None between two.
        recorded: Every graph.
        num_outside: Those recorded outside of vLLM's `graph_capture`, in which a GPU's ranks make their buffers of
            all-reduces known to one another.
    """

    def __init__(self) -> None:
        self.host_reads: list[str] = []
        self.recorder: Recorder | None = None
        self.recorded: list[RecordedGraph] = []
        self.num_outside = 0
        self._is_inside = False

    @contextmanager
    def capturing(self, *_: Any, **__: Any) -> Iterator[None]:
        """In the place of vLLM's `graph_capture`."""
        self._is_inside = True
        try:
            yield
        finally:
            self._is_inside = False

    @contextmanager
    def recording(self, graph: RecordedGraph, *_: Any, **__: Any) -> Iterator[None]:
        """In the place of `torch.cuda.graph`."""
        self.recorded.append(graph)
        self.num_outside += not self._is_inside
        self.recorder = Recorder(graph, self.host_reads)
        try:
            with self.recorder:
                yield
        finally:
            self.recorder = None

    def launch(self, executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
        """In the place of a Triton kernel's launch."""
        if self.recorder is not None:
            self.recorder.graph.record(_launch, (executor, *args), kwargs, None)
        with _disable_current_modes():
            _launch(executor, *args, **kwargs)

    def read(self, name: str) -> Callable[..., Any]:
        """A tensor's method that reads it, which tells."""
        stock = getattr(torch.Tensor, name)

        def reading(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.recorder is not None:
                self.host_reads.append(f"Tensor.{name}")
            return stock(tensor, *args, **kwargs)

        return reading


def record_graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """From now on, stock's own `capture` records so; until the test ends."""
    graphs = Graphs()

    @contextmanager
    def nothing(*_: Any, **__: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", graphs.recording)
    monkeypatch.setattr(GridExecutor, "__call__", lambda *args, **kwargs: graphs.launch(*args, **kwargs))
    for name in _READERS:
        monkeypatch.setattr(torch.Tensor, name, graphs.read(name))
    monkeypatch.setattr(cudagraph_utils, "graph_capture", graphs.capturing)
    # Streams, and pools of memory.
    monkeypatch.setattr(cudagraph_utils, "current_stream", lambda: None)
    for name, stand_in in (("capture_pool", nothing), ("set_graph_pool_id", lambda *_: None)):
        if hasattr(cudagraph_utils, name):  # the first from 0.32 on, the second before
            monkeypatch.setattr(cudagraph_utils, name, stand_in)
    for name in ("get_global_graph_pool", "graph_pool_handle"):
        monkeypatch.setattr(type(current_platform), name, lambda _: 0, raising=False)
    monkeypatch.setattr(AttentionGroup, "supports_draft_decode_metadata_update", property(lambda _: True))
    monkeypatch.setattr(AttentionGroup, "update_draft_decode_metadata", _renew)
    return graphs


def _renew(group: AttentionGroup, by_layer: dict[str, Any]) -> None:
    """What a GPU's attention backend does on the device: plan the pass again, for lengths that have grown."""
    metadata, builder = by_layer[group.layer_names[0]], group.get_metadata_builder()
    metadata.scheduler_metadata = _custom_ops.cpu_attn_get_scheduler_metadata(
        num_reqs=metadata.seq_lens.shape[0],
        num_heads=builder.num_heads,
        num_kv_heads=builder.num_kv_heads,
        head_dim=builder.head_dim,
        seq_lens=metadata.seq_lens,
        dtype=builder.dtype,
        query_start_loc=metadata.query_start_loc,
        causal=metadata.causal,
        sliding_window_size=builder.window_size,
        isa=builder.isa,
        enable_kv_split=False,
        kv_cache_dtype=builder.kv_cache_dtype,
    )


def capture_draft_steps(worker: Any, sizes: tuple[int, ...]) -> None:
    """Capture the drafter's graphs as a GPU's runner does, through stock's own manager and loop.

    Args:
        worker: Of an eager engine.
        sizes: vLLM's `cudagraph_capture_sizes`.
    """
    compilation, drafter = worker.vllm_config.compilation_config, worker.self_drafter
    compilation.cudagraph_capture_sizes, compilation.max_cudagraph_capture_size = list(sizes), max(sizes)
    layers = compilation.static_forward_context
    for name in drafter.draft_attn_layer_names:
        layers[name].use_direct_call = True  # a GPU's graph has what is inside of vLLM's operator
    runner = worker.model_runner
    runner.cudagraph_manager = cudagraph_utils.ModelCudaGraphManager(
        worker.vllm_config,
        worker.device,
        CUDAGraphMode.NONE,
        decode_query_len=drafter.num_speculative_steps + 1,
    )
    drafter.init_cudagraph_manager(CUDAGraphMode.FULL_AND_PIECEWISE)
    offloader = types.SimpleNamespace(sync_prev_onload=lambda: None, join_after_forward=lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cudagraph_utils, "get_offloader", lambda: offloader)
        drafter.capture()
