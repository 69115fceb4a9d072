"""The GPU worker: stock, plus the self-drafter, and a report of what the engine did."""

import logging

from vllm.v1.worker.gpu_worker import Worker

from efficient_rollout.certificate import certificate_gap, require_certificate
from efficient_rollout.config import Settings
from efficient_rollout.engine.checks import check_drafting_engine
from efficient_rollout.engine.gpu.worker import V2Worker
from efficient_rollout.engine.machine import this_machine

logger = logging.getLogger(__name__)


class GpuWorker(V2Worker, Worker):
    """Is the `worker_cls` of an engine on a GPU, with or without drafting."""

    def look_for_certificate(self, settings: Settings) -> None:
        """Find this machine's certificate; without one, warn or refuse as the settings say.

        Raises:
            UnsupportedDeviceError: There is none and the settings require one; or its check failed.
        """
        machine, path = this_machine(), settings.gpu_certificate_path
        if settings.gpu_certificate == "required":
            require_certificate(machine, path)
        self.certificate_gap = certificate_gap(machine, path)
        if self.certificate_gap is not None and self.rank == 0:
            logger.warning("this engine drafts without a certificate: %s", self.certificate_gap)

    def check(self) -> None:
        """Check what `engine_args` could not: the engine's options as vLLM has resolved them.

        Raises:
            UnsupportedVersionError: vLLM, or the model runner it chose, is not one this package was tested with.
            UnsupportedDeviceError: This kind of machine has no certificate and the settings require one, or its check
                failed.
            UnsupportedModelError: The policy, or how the engine splits it, is out of reach of the self-drafter.
            SchemeUnavailableError: The drafter's scheme takes none of the policy's layers.
        """
        settings = self.settings
        if settings.enabled:
            self.look_for_certificate(settings)
            check_drafting_engine(self.vllm_config, settings, device="cuda")
