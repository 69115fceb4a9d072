"""New weights into layers that hold them as they were loaded: written in place, then quantized where they are."""

from collections.abc import Iterable

import torch
from vllm.model_executor.model_loader.utils import process_weights_after_loading

from efficient_rollout.engine.weights.sync import WeightSync


class InPlaceWeightSync(WeightSync):
    """Copies every tensor to where the policy computes with it; nothing is rebuilt.

    Captured graphs keep their addresses: the policy's weights have theirs, and packed layers requantize in place.
    """

    def _open_layers(self) -> None:
        pass

    def _owned(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterable[tuple[str, torch.Tensor]]:
        return weights

    def _close_layers(self) -> None:
        """Show every layer to the drafter, as after a first load.

        It ends when the device has done all of it.
        """
        process_weights_after_loading(self._model, self._config.model_config, self._worker.device)
        # Else the sync's seconds would be those of its launches.
        if self._worker.device.type == "cuda":
            torch.cuda.synchronize()
