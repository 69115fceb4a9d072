"""vLLM's V2 model runner, which GPUs have, whole on a CPU: Triton's interpreter runs its kernels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import interpreter  # noqa: F401 - first: vLLM looks for Triton once
import pytest
from vllm import LLM, SamplingParams
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.sample.ops import topk_topp_sampler
from vllm.v1.worker.cpu_worker import CPUWorker

from efficient_rollout.config import CONFIG_KEY, Settings
from efficient_rollout.engine.engine_args import drafting_args
from efficient_rollout.engine.gpu.worker import V2Worker
from efficient_rollout.gpu_check.stand import end_engine
from efficient_rollout.measuring.offline import drain
from efficient_rollout.measuring.v2 import RecordingV2

# The interpreter cannot run stock's kernel for these two; a CPU without Triton has stock's other way.
topk_topp_sampler.apply_top_k_top_p_triton = topk_topp_sampler.apply_top_k_top_p_pytorch


class InterpretedWorker(V2Worker, CPUWorker):
    """What a GPU's worker is, over the CPU's."""


class InterpretedRecordingWorker(RecordingV2, InterpretedWorker):
    """The same, of measured engines."""


def engine(policy: str, settings: Settings | None = None, *, asynchronous: bool = True, **options: Any) -> LLM:
    """An engine in this process, drafting as the settings say; without any it is stock vLLM.

    Args:
        policy: Path.
        settings: Of this package.
        asynchronous: Whether a tick is scheduled before the one before it has ended, as on a GPU.
        options: vLLM's.
    """
    if settings is not None:
        options = {
            "worker_cls": f"{__name__}.InterpretedWorker",
            "additional_config": {CONFIG_KEY: settings.to_dict()},
            **drafting_args(policy, settings, tensor_parallel_size=options.get("tensor_parallel_size", 1)),
        } | options
    with _scheduling(asynchronous=asynchronous):
        return LLM(
            policy,
            **{
                "dtype": "float32",
                "skip_tokenizer_init": True,
                "enforce_eager": True,
                "max_model_len": 64,
                "max_num_seqs": 8,
                "max_num_batched_tokens": 256,
                "enable_prefix_caching": False,
                "disable_log_stats": True,
                **options,
            },
        )


@contextmanager
def running(policy: str, drafter: dict[str, Any] | None = None, most: int = 3, **options: Any) -> Iterator[LLM]:
    """Start an engine that always drafts so much, stock without a drafter; it ends with the block."""
    tree = {"drafter": drafter, "controller": {"rule": "always", "max_draft_tokens": most}}
    started = engine(policy, None if drafter is None else Settings.parse(tree), **options)
    try:
        yield started
    finally:
        started.llm_engine.engine_core.shutdown()
        end_engine()


def answers(engine: LLM, prompts: Sequence[list[int]], parameters: Sequence[SamplingParams]) -> list[list[int]]:
    """Token ids of the response to each prompt, when nothing runs any more."""
    outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], parameters, use_tqdm=False)
    drain(engine)
    return [list(output.outputs[0].token_ids) for output in outputs]


@contextmanager
def _scheduling(*, asynchronous: bool) -> Iterator[None]:
    """Meanwhile, vLLM's CPU platform leaves scheduling as it is wanted; it would always turn it synchronous."""
    stock = CpuPlatform.check_and_update_config

    def check_and_update_config(config: Any) -> None:
        stock(config)
        config.scheduler_config.async_scheduling = asynchronous

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuPlatform, "check_and_update_config", staticmethod(check_and_update_config))
        yield
