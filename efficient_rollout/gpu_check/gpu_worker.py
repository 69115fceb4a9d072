"""The GPU workers of the check itself, which makes the certificate that every other engine needs."""

from efficient_rollout.vllm_plugin.measuring.v2 import RecordingGpuWorker
from efficient_rollout.vllm_plugin.v2.gpu_worker import GpuWorker


class UncertifiedGpuWorker(GpuWorker):
    """The product's, without a certificate."""

    def require_certificate(self, path: str | None) -> None:
        """None is needed to make one."""


class UncertifiedRecordingGpuWorker(RecordingGpuWorker):
    """That of measured engines, without a certificate: it may not be there yet."""

    def require_certificate(self, path: str | None) -> None:
        """None is needed to make one."""
