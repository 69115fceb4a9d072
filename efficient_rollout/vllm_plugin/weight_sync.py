"""New weights into a running engine on a CPU: the policy's, and through the taps the drafter's."""

import logging
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from efficient_rollout.errors import StaleDrafterError

if TYPE_CHECKING:
    from efficient_rollout.vllm_plugin.worker import CpuWorker

logger = logging.getLogger(__name__)


class WeightSync:
    """One weight sync of one worker, as a context: buckets of named tensors in, then everything repacked.

    vLLM on a CPU repacks weights after loading, so new ones go through its layerwise reload: each layer is
    rebuilt from its checkpoint tensors, quantized for the drafter by the taps, and repacked.

    Args:
        worker: The engine's worker.
    """

    def __init__(self, worker: "CpuWorker") -> None:
        self._worker = worker
        self._model = worker.model_runner.get_model()
        self._config = worker.model_runner.vllm_config
        self._loaded: set[str] = set()

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()

    def begin(self) -> None:
        """Make the model ready to be loaded again."""
        self._started = time.perf_counter()
        self._expected = {name for name, _ in self._model.named_parameters()}
        if self._worker.self_drafter is not None:
            packed = self._worker.self_drafter.packed
            packed.take_report()
            # After a fault the weights are no policy's.
            packed.is_held = not self._worker.wants_requantizing() and packed.fault is None
            packed.fault = None
        with set_current_vllm_config(self._config), torch.no_grad():
            initialize_layerwise_reload(self._model)

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load one bucket of checkpoint tensors.

        Args:
            weights: Names as in the checkpoint, and tensors; copied, because the loader keeps them until their
                layer is complete while a bucket's memory is used again.
        """
        with set_current_vllm_config(self._config), torch.no_grad():
            self._loaded |= self._model.load_weights((name, tensor.clone()) for name, tensor in weights) or set()

    def finish(self) -> None:
        """Repack what is left, and count.

        Raises:
            StaleDrafterError: Some parameters got no new values.
        """
        with set_current_vllm_config(self._config), torch.no_grad():
            finalize_layerwise_reload(self._model, self._config.model_config)
            self._repack_tied_heads()
        missing = self._expected - self._loaded
        if missing:
            raise StaleDrafterError(
                f"the weight sync left {len(missing)} parameters without new values: {', '.join(sorted(missing)[:5])}"
            )
        stats, drafter = self._worker.stats, self._worker.self_drafter
        if drafter is not None:
            report = drafter.packed.take_report()
            drafter.fault = None
            if drafter.packed.fault is not None:
                drafter.turn_off(drafter.packed.fault)
            stats.requantize_seconds += report.seconds
        stats.weight_sync_seconds += time.perf_counter() - self._started
        stats.num_weight_syncs += 1

    def _repack_tied_heads(self) -> None:
        # A tied head shares the embedding's tensor but owns a packed copy of it, and the layerwise reload
        # processes only the layer that the checkpoint names.
        embeddings = {
            id(module.weight)
            for module in self._model.modules()
            if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
        }
        for module in self._model.modules():
            if isinstance(module, ParallelLMHead) and id(module.weight) in embeddings:
                module.quant_method.process_weights_after_loading(module)
