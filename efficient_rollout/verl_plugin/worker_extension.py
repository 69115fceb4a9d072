"""Weights in: veRL's buckets go to vLLM's worker, and the drafter follows them."""

import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from efficient_rollout.errors import EfficientRolloutError, UnsupportedModelError, WeightSyncError


class EfficientWorkerExtension(vLLMColocateWorkerExtension):
    """Is veRL's worker extension, with a weight sync that survives vLLM's repacked weights and requantizes."""

    def update_weights_from_ipc(
        self, peft_config: dict | None = None, base_sync_done: bool = False, use_shm: bool = False
    ) -> None:
        """Load every bucket into the policy, then let the drafter follow, once.

        Raises:
            UnsupportedModelError: The bucket stream is that of a LoRA adapter.
            WeightSyncError: The stream is not the policy's, or another sync is open.
        """
        sync = self.weight_sync(self)
        fault: EfficientRolloutError | None = None
        try:
            if peft_config and base_sync_done:
                raise UnsupportedModelError(
                    "self-drafting rollouts do not support LoRA adapters in the engine: merge them "
                    "(actor_rollout_ref.model.lora.merge=true) or use rollout.name=vllm"
                )
            sync.begin()
        except EfficientRolloutError as error:
            fault = error

        def load_bucket(weights: list[tuple[str, torch.Tensor]], is_last: bool) -> None:  # noqa: ARG001
            nonlocal fault
            # veRL's sender waits for ever for the answer to each bucket: after a fault the rest is taken and dropped.
            if fault is None:
                try:
                    sync.load(weights)
                except WeightSyncError as error:
                    # Without its traceback, which holds the bucket's memory: veRL releases that before it answers.
                    fault = WeightSyncError(str(error))

        receiver = BucketedWeightReceiver(zmq_handle=self._get_zmq_handle(), device=self.device, use_shm=use_shm)
        try:
            receiver.receive_weights(load_bucket)
        except Exception as error:
            if fault is None:
                raise sync.fail(error) from error
        if fault is not None:
            raise fault
        sync.finish()

    def _get_zmq_handle(self) -> str:
        """Do as stock does, for this worker's own sender.

        vLLM tells the data-parallel engines of a dense policy that they are one each, so that veRL lets all of them
        ask the first engine's senders for weights, and the other senders wait for ever. A GPU's worker counts its
        engine among `local_rank`, a CPU's does not.
        """
        parallel, local_rank = self.model_runner.vllm_config.parallel_config, self.local_rank
        of_engine = local_rank % parallel.tensor_parallel_size
        self.local_rank = (parallel.data_parallel_rank_local or 0) * parallel.tensor_parallel_size + of_engine
        try:
            return super()._get_zmq_handle()
        finally:
            self.local_rank = local_rank
