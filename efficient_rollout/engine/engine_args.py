"""The vLLM arguments that turn self-drafting on. Everything goes through vLLM's own options."""

from typing import Any

from efficient_rollout.config import CONFIG_KEY, Settings
from efficient_rollout.engine.checks import (
    check_certificate,
    check_device,
    check_gpu_settings,
    check_model,
    check_scheme,
    check_vllm_version,
)
from efficient_rollout.engine.environment import bind_workers, choose_runner, device_type
from efficient_rollout.engine.profiles import with_profile

CPU_WORKER = "efficient_rollout.engine.cpu.worker.CpuWorker"
GPU_WORKER = "efficient_rollout.engine.gpu.worker.GpuWorker"
EXECUTOR = "efficient_rollout.engine.executor.EfficientExecutor"
IN_PROCESS_EXECUTOR = "efficient_rollout.engine.executor.InProcessExecutor"
# For frameworks whose engines get their GPUs through Ray.
RAY_EXECUTOR = "efficient_rollout.engine.ray_executor.RayExecutor"
SCHEDULER = "efficient_rollout.engine.scheduler.EfficientScheduler"
V2_SCHEDULER = "efficient_rollout.engine.scheduler.AsyncEfficientScheduler"


def engine_args(
    model: str,
    settings: Settings,
    *,
    dtype: str = "auto",
    enforce_eager: bool = False,
    tensor_parallel_size: int = 1,
    data_parallel_size: int = 1,
    **others: Any,
) -> dict[str, Any]:
    """Return keyword arguments for `vllm.LLM`, `AsyncEngineArgs`, or a server's options.

    Args:
        model: The policy's path, or its name on the Hugging Face Hub: the same as the engine's own `model`.
        settings: With `enabled=False` the engine is stock vLLM, plus a report of what it did. Where its rule needs a
            latency profile and none is named, the cached one is taken, or measured first.
        dtype: The engine's own option, as are the next three: for that profile, and whether the scheme takes it.
        enforce_eager: For that profile.
        tensor_parallel_size: For that profile, and for the scheme.
        data_parallel_size: Workers of all engines get cores of their own through this process's variables.
        others: The engine's further options, by vLLM's names: to read the policy as the engine will, and to refuse here
            what would end behind "Engine core initialization failed" there. They are not among the arguments returned.

    Raises:
        EfficientRolloutError: The installed vLLM, its device, the policy, or the scheme on it cannot do it. Raised
            here, before any process is started.
    """
    check_vllm_version()
    check_device()
    check_certificate(settings)
    is_gpu = device_type() == "cuda"
    check_model(model, settings, dtype=dtype, tensor_parallel_size=tensor_parallel_size, options=others)
    check_scheme(settings)
    if is_gpu:
        check_gpu_settings(settings)
    else:
        bind_workers(tensor_parallel_size * data_parallel_size)
    settings = with_profile(
        model, settings, dtype=dtype, is_compiled=not enforce_eager, tensor_parallel_size=tensor_parallel_size
    )
    worker = GPU_WORKER if is_gpu else CPU_WORKER
    args: dict[str, Any] = {"worker_cls": worker, "additional_config": {CONFIG_KEY: settings.to_dict()}}
    if settings.enabled:
        args |= drafting_args(model, settings, tensor_parallel_size=tensor_parallel_size)
        if not is_gpu:
            choose_runner()
            # Decisions are made per tick from results of the tick before: both must be in hand.
            args |= {"scheduler_cls": SCHEDULER, "distributed_executor_backend": EXECUTOR, "async_scheduling": False}
    return args


def drafting_args(model: str, settings: Settings, *, tensor_parallel_size: int = 1) -> dict[str, Any]:
    """Return those that make an engine on vLLM's V2 model runner draft, beside its worker and settings."""
    return {
        "scheduler_cls": V2_SCHEDULER,
        # As stock chooses: one worker is in the engine's own process.
        "distributed_executor_backend": IN_PROCESS_EXECUTOR if tensor_parallel_size == 1 else EXECUTOR,
        "speculative_config": {
            "method": "draft_model",
            "model": model,
            "num_speculative_tokens": settings.controller.max_draft_tokens,
        },
    }
