"""New weights into a running engine: the policy's, and through the taps the drafter's."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import (
    LOADING_LAYERS,
    _place_kernel_tensors,
    get_layerwise_info,
)
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.tracing import instrument_manual

from efficient_rollout.engine.weights.arrivals import Arrivals, tied_heads
from efficient_rollout.errors import WeightSyncError

if TYPE_CHECKING:
    from efficient_rollout.engine.worker import ReportingWorker

UNFINISHED = "a weight sync began and has not finished"
_WAY_OUT = "The engine holds no whole policy now and generates nothing: begin again, and send every tensor."
_MAX_CAUSE_CHARACTERS = 400  # vLLM's may list every parameter


class WeightSync:
    """Is one weight sync of one worker, as a context: buckets of named tensors go in, then everything is repacked.

    vLLM on a CPU repacks weights after loading, so new ones go through its layerwise reload: each layer is
    rebuilt from its checkpoint tensors, quantized for the drafter by the taps, and repacked. Every tensor is checked
    as it comes, and at the end that all came.

    From `begin` on the worker's health says why its weights are no policy's; `finish` clears it. A sync that
    fails is over, and leaves a model that runs, on a mixture of old and new; drafting is off. The next may begin.
    """

    def __init__(self, worker: "ReportingWorker") -> None:
        self._worker = worker
        self._model = worker.model_runner.get_model()
        self._config = worker.model_runner.vllm_config
        self._arrivals: Arrivals | None = None

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        elif self._is_open:
            self.fail(error)

    @property
    def _is_open(self) -> bool:
        return self._worker.open_weight_sync is self

    def begin(self) -> None:
        """Make the model ready to be loaded again; raise WeightSyncError where another sync is open."""
        open_sync = self._worker.open_weight_sync
        if open_sync is not None:
            raise WeightSyncError(
                f"another weight sync is open in this engine, begun {time.perf_counter() - open_sync.started:.0f} s "
                "ago: finish it first, or drop it with collective_rpc('abort_weight_sync') if its sender is gone"
            )
        drafter, health = self._worker.self_drafter, self._worker.health
        self.started = time.perf_counter()
        self._worker.open_weight_sync = self
        health.weights_fault = UNFINISHED
        if drafter is not None:
            drafter.packed.take_report()
            drafter.packed.turn = health.weights_version
        with self.step():
            # Of a quantized policy (in an engine without a drafter) only vLLM knows what a checkpoint holds.
            is_quantized = self._config.model_config.quantization is not None
            expected = set() if is_quantized else {name for name, _ in self._model.named_parameters()}
            self._open_layers()
            turn = health.weights_version
            self._arrivals = Arrivals(self._model, expected, is_exact=drafter is not None, turn=turn)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Run a part of this sync, in vLLM's context; whatever is raised inside ends the sync as WeightSyncError."""
        if not self._is_open:
            raise WeightSyncError(
                f"this weight sync is not open: {self._worker.health.weights_fault or 'it has finished'}. "
                "Begin another."
            )
        try:
            with set_current_vllm_config(self._config), torch.no_grad():
                yield
        except Exception as error:
            if not self._is_open:  # A part of this part ended it.
                raise
            raise self.fail(error) from error

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load one bucket of checkpoint tensors, whose memory may be used again; return the model's names of them.

        Raises:
            WeightSyncError: A tensor has an unknown name, a wrong shape, or values that are no finite numbers; or the
                sender's checksums (`columns.SENT`) are not those of what came.
        """
        with self.step():
            return self._worker.load_checkpoint_tensors(self._arrivals.named(self._owned(weights))) or set()

    def require_complete(self) -> None:
        """Raise WeightSyncError, and end the sync, unless every parameter got all its values."""
        with self.step():
            self._arrivals.require_complete()

    def finish(self) -> None:
        """Repack what is left, ask policy and drafter what they hold now, and count.

        Raises:
            WeightSyncError: Some parameters did not get all their values, or hold others than came.
        """
        worker, arrivals, stats = self._worker, self._arrivals, self._worker.tally.recent
        with self.step():
            arrivals.require_complete()
            self._close_layers()
            proven_share = arrivals.require_held()
        arrivals.close()
        worker.open_weight_sync = None
        worker.health.take_weights()
        if worker.self_drafter is not None:
            requantize_seconds, fault = worker.self_drafter.packed.take_report()
            fault = fault or worker.self_drafter.packed.take_difference()
            if fault is not None:
                worker.health.turn_off_drafter(fault)
            stats.requantize_seconds += requantize_seconds
            stats.weights_checksum, stats.proven_weight_share = arrivals.checksum, proven_share
            stats.is_as_sent = int(arrivals.is_as_sent)
        seconds, now = time.perf_counter() - self.started, time.time_ns()
        stats.weight_sync_seconds += seconds
        stats.num_weight_syncs += 1
        # The drafter is quantized layer by layer in between, so that its seconds are no span of their own.
        facts = {"requantize_seconds": stats.requantize_seconds, "tensors": arrivals.num_tensors}
        instrument_manual("efficient_rollout.weight_sync", now - int(seconds * 1e9), now, facts)

    def fail(self, error: BaseException) -> WeightSyncError:
        """End this sync for `error`; return what to raise."""
        text = str(error)
        if not isinstance(error, WeightSyncError):
            text = f"{type(error).__name__}: {text[:_MAX_CAUSE_CHARACTERS]}"
            if self._arrivals is not None and self._arrivals.num_tensors:
                text = f"{text} (the last tensor was {self._arrivals.current})"
        text = f"the weight sync failed: {text}. {_WAY_OUT}"
        if self._arrivals is not None:
            self._arrivals.close()
        self.restore_layers(self._model)
        self._worker.open_weight_sync = None
        self._worker.health.lose_weights(text)
        return WeightSyncError(text)

    def _open_layers(self) -> None:
        initialize_layerwise_reload(self._model)

    def _owned(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterable[tuple[str, torch.Tensor]]:
        # The loader keeps tensors until their layer is complete.
        return ((name, tensor.clone()) for name, tensor in weights)

    def _close_layers(self) -> None:
        finalize_layerwise_reload(self._model, self._config.model_config)
        # A tied head owns a packed copy of the embedding's tensor, and the layerwise reload processes only the layer
        # that the checkpoint names.
        for head, _ in tied_heads(self._model):
            head.quant_method.process_weights_after_loading(head)

    @staticmethod
    def restore_layers(model: torch.nn.Module) -> None:
        """Undo vLLM's preparation of a reload: layers that were not loaded again get their old tensors back.

        Without it the model can neither run nor be prepared again.
        """
        for layer in model.modules():
            info = get_layerwise_info(layer)
            if info.can_load():
                _place_kernel_tensors(layer, info)
                info.reset()
        LOADING_LAYERS.clear()


class InPlaceWeightSync(WeightSync):
    """Copies every tensor to where the policy computes with it, for layers that hold weights as they were loaded.

    Captured graphs keep their addresses: the policy's weights have theirs, and packed layers requantize in place.
    """

    def _open_layers(self) -> None:
        pass

    def _owned(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterable[tuple[str, torch.Tensor]]:
        return weights

    def _close_layers(self) -> None:
        """Show every layer to the drafter, as after a first load; it ends when the device has done all of it."""
        process_weights_after_loading(self._model, self._config.model_config, self._worker.device)
        # Else the sync's seconds would be those of its launches.
        if self._worker.device.type == "cuda":
            torch.cuda.synchronize()
