"""Weights in: veRL's buckets go to vLLM's worker, and the drafter follows them."""

import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from efficient_rollout.errors import UnsupportedModelError
from efficient_rollout.vllm_plugin.weight_sync import WeightSync


class EfficientWorkerExtension(vLLMColocateWorkerExtension):
    """veRL's worker extension, with a weight sync that survives vLLM's repacked weights and requantizes."""

    def update_weights_from_ipc(
        self, peft_config: dict | None = None, base_sync_done: bool = False, use_shm: bool = False
    ) -> None:
        """Load every bucket into the target, then let the drafter follow, once.

        Raises:
            UnsupportedModelError: The bucket stream is that of a LoRA adapter.
        """
        if peft_config and base_sync_done:
            raise UnsupportedModelError(
                "self-drafting rollouts do not support LoRA adapters in the engine: merge them "
                "(actor_rollout_ref.model.lora.merge=true) or use rollout.name=vllm"
            )
        sync = WeightSync(self)
        sync.begin()

        def load_bucket(weights: list[tuple[str, torch.Tensor]], is_last: bool) -> None:  # noqa: ARG001
            sync.load(weights)

        BucketedWeightReceiver(zmq_handle=self._get_zmq_handle(), device=self.device, use_shm=use_shm).receive_weights(
            load_bucket
        )
        sync.finish()
