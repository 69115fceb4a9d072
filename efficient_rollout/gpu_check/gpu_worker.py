"""The GPU workers of the check itself, which makes the certificate that every other engine needs."""

from efficient_rollout.config import Settings
from efficient_rollout.engine.gpu.worker import GpuWorker
from efficient_rollout.measuring.v2 import RecordingGpuWorker


class _Uncertified:
    """Stands before a GPU worker among the bases, and lets it draft without a certificate."""

    def look_for_certificate(self, settings: Settings) -> None:
        """Do nothing: no certificate is needed to make one."""


class UncertifiedGpuWorker(_Uncertified, GpuWorker):
    """Is the product's worker, without a certificate."""


class UncertifiedRecordingGpuWorker(_Uncertified, RecordingGpuWorker):
    """Is the worker of measured engines, without a certificate: it may not be there yet."""
