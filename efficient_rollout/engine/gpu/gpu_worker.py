"""The GPU worker: stock, plus the self-drafter, and a report of what the engine did."""

from vllm.v1.worker.gpu_worker import Worker

from efficient_rollout.certificate import require_certificate
from efficient_rollout.engine.checks import check_drafting_engine
from efficient_rollout.engine.gpu.worker import V2Worker
from efficient_rollout.engine.machine import this_machine


class GpuWorker(V2Worker, Worker):
    """`worker_cls` of an engine on a GPU, with or without drafting."""

    def check(self) -> None:
        """Check what `engine_args` could not: the engine's options as vLLM has resolved them.

        Raises:
            UnsupportedVersionError: vLLM, or the model runner it chose, is not one this package was tested with.
            UnsupportedDeviceError: This kind of machine has no certificate.
            UnsupportedModelError: The policy, or how the engine splits it, is out of reach of the self-drafter.
            SchemeUnavailableError: The drafter's scheme takes none of the policy's layers.
        """
        settings = self.settings
        if settings.enabled:
            self.require_certificate(settings.gpu_certificate)
            check_drafting_engine(self.vllm_config, settings, device="cuda")

    def require_certificate(self, path: str | None) -> None:
        """Raise UnsupportedDeviceError where this kind of machine has none."""
        require_certificate(this_machine(), path)
