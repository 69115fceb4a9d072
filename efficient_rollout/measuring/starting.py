"""Start and stop the engines of a measurement."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm import LLM

from efficient_rollout.config import Settings
from efficient_rollout.cost_model.model_shape import read_model_shape
from efficient_rollout.drafter.cpu.native.library import has_avx512
from efficient_rollout.engine.checks import check_device
from efficient_rollout.engine.engine_args import engine_args
from efficient_rollout.engine.environment import bind_workers, device_type, engines_in_this_process
from efficient_rollout.engine.executor import InProcessExecutor

# Room beside a request's own tokens: its drafts' slots, and the unused end of its last block.
_SPARE_TOKENS = 256
# What vLLM looks drafts up with, and its settings.
_VLLM_LOOKUPS: dict[str, dict[str, int]] = {"ngram": {"prompt_lookup_min": 2, "prompt_lookup_max": 4}, "suffix": {}}
# Of measured engines that draft, by type of device: scheduler, worker.
_CLASSES = {
    "cpu": ("scripted.ScriptedScheduler", "recording.RecordingWorker"),
    "cuda": ("scripted.AsyncScriptedScheduler", "v2.RecordingGpuWorker"),
}
# vLLM refuses to start where less than this share of a GPU is free. Several engines stand beside each other here, and
# their memory is given in bytes.
_FREE_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Says what every engine of one measurement shares."""

    max_requests: int  # requests that run at once
    max_context_tokens: int  # longest prompt and response together
    kv_cache_tokens: int  # tokens the KV cache holds, all requests together
    dtype: str = "bfloat16"  # of the policy
    is_compiled: bool = False  # compiled mode instead of eager
    keeps_prefixes: bool = True  # prefix caching, as by default in vLLM
    tensor_parallel_size: int = 1  # workers, a part of the policy each
    least_tick_tokens: int = 2048  # tokens that a tick computes where there are as many, or more

    def to_args(self, model: str) -> dict[str, Any]:
        """Return keyword arguments of `vllm.LLM`."""
        bytes_per_token = read_model_shape(model).kv_bytes(self.dtype)
        on_device = {"gpu_memory_utilization": _FREE_SHARE} if device_type() == "cuda" else {}
        return on_device | {
            "model": model,
            "dtype": self.dtype,
            "enforce_eager": not self.is_compiled,
            "tensor_parallel_size": self.tensor_parallel_size,
            "max_model_len": self.max_context_tokens,
            "max_num_seqs": self.max_requests,
            "max_num_batched_tokens": max(self.least_tick_tokens, self.max_requests * 17),
            "kv_cache_memory_bytes": int(bytes_per_token * (self.kv_cache_tokens + _SPARE_TOKENS * self.max_requests)),
            "enable_prefix_caching": self.keeps_prefixes,
            "seed": 0,
            "skip_tokenizer_init": True,
            "disable_log_stats": True,
        }


def fastest_dtype() -> str:
    """Return the dtype plain decoding is faster in here.

    On a CPU, bfloat16 needs AVX512 to be worth its fewer bytes. Without it, vLLM's and torch's bfloat16 products of
    more than a few rows take far longer than float32 ones.
    """
    return "bfloat16" if device_type() != "cpu" or has_avx512() else "float32"


# Starts an engine on a policy: the product's, scripted and recorded; or stock vLLM, where there are no settings.
StartEngine = Callable[[str, EngineLimits, Settings | None], Any]


def start_engine(model: str, limits: EngineLimits, settings: Settings | None) -> Any:
    """Start the product's engine. Requests can script its decisions, and its ticks are recorded.

    Without settings it is stock vLLM, without any class of this package.

    Raises:
        EfficientRolloutError: From `engine_args`; UnsupportedDeviceError of a stock engine too, where none of ours
            could start.
    """
    return LLM(**_options(model, limits, settings))


def start_in_process(model: str, limits: EngineLimits, settings: Settings | None) -> Any:
    """Do as `start_engine` does, with the worker in this process.

    It starts in seconds, and shares this process's interpreter with whoever asks it.
    """
    in_process = {} if settings is None else {"distributed_executor_backend": InProcessExecutor}
    with engines_in_this_process():
        return LLM(**_options(model, limits, settings) | in_process)


def _options(model: str, limits: EngineLimits, settings: Settings | None) -> dict[str, Any]:
    if settings is None:
        check_device()
        if device_type() == "cpu":
            bind_workers(limits.tensor_parallel_size)
        return limits.to_args(model)
    parallel = {"tensor_parallel_size": limits.tensor_parallel_size}
    ours = engine_args(model, settings, dtype=limits.dtype, enforce_eager=not limits.is_compiled, **parallel)
    scheduler, worker = (f"efficient_rollout.measuring.{name}" for name in _CLASSES[device_type()])
    return limits.to_args(model) | ours | {"scheduler_cls": scheduler, "worker_cls": worker}


def start_vllm_lookup(model: str, limits: EngineLimits, method: str, num_draft_tokens: int) -> Any:
    """Start stock vLLM with drafts it looks up itself, by its method `ngram` or `suffix`.

    Our worker, disabled, only verifies them, which stock vLLM on a CPU does wrongly.
    """
    return LLM(
        **limits.to_args(model),
        **engine_args(model, Settings(enabled=False), tensor_parallel_size=limits.tensor_parallel_size),
        speculative_config={"method": method, "num_speculative_tokens": num_draft_tokens, **_VLLM_LOOKUPS[method]},
    )


def stop(engine: Any) -> None:
    """End an engine's processes."""
    engine.llm_engine.engine_core.shutdown()
