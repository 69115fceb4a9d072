"""The GPU worker of the check itself, which makes the certificate that every other engine needs."""

from efficient_rollout.vllm_plugin.v2.gpu_worker import GpuWorker


class UncertifiedGpuWorker(GpuWorker):
    """The product's, without a certificate."""

    def require_certificate(self, path: str | None) -> None:
        """None is needed to make one."""
