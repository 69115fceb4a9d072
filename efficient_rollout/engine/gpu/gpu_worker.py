"""The GPU worker: stock, plus the self-drafter, and a report of what the engine did."""

import logging
from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from efficient_rollout.certificate import certificate_gap, require_certificate
from efficient_rollout.config import Settings
from efficient_rollout.engine.checks import check_drafting_engine
from efficient_rollout.engine.gpu.worker import V2Worker
from efficient_rollout.engine.machine import this_machine

logger = logging.getLogger(__name__)


class Certified:
    """Stands before a worker class of the V2 runner among the bases.

    It adds what a worker says of its machine's certificate.

    Attributes:
        certificate_gap: Why it drafts without one; None where it has one, or does not draft.
    """

    certificate_gap: str | None = None
    rank = 0

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

    def plugin_status(self) -> dict[str, Any]:
        """Return the status of `ReportingWorker`, with `certificate_gap`."""
        status: dict[str, Any] = super().plugin_status()  # type: ignore[misc]
        return status | {"certificate_gap": self.certificate_gap}

    def take_rollout_stats(self) -> dict[str, Any]:
        """Do as `ReportingWorker` does, and say whether the engine drafts without a certificate."""
        return super().take_rollout_stats() | self._told()  # type: ignore[misc]

    def rollout_totals(self) -> dict[str, Any]:
        """Do as `ReportingWorker` does, and say whether the engine drafts without a certificate."""
        return super().rollout_totals() | self._told()  # type: ignore[misc]

    def _told(self) -> dict[str, Any]:
        return {"is_uncertified": int(self.certificate_gap is not None)}


class GpuWorker(Certified, V2Worker, Worker):
    """Is the `worker_cls` of an engine on a GPU, with or without drafting."""

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
