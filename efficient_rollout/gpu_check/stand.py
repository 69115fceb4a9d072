"""Where a step of the check runs: a device, a folder, sizes, and how engines are started there.

A step is a function of a stand, whatever its device: the functions that run on a GPU are those that tests run on a CPU.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficient_rollout.config import CONFIG_KEY, Settings

if TYPE_CHECKING:
    from efficient_rollout.measuring.starting import EngineLimits

SCHEDULER = "efficient_rollout.measuring.scripted.AsyncScriptedScheduler"
# What a step measured, for the report; JSON types.
Measured = dict[str, Any]


class CheckFailed(Exception):
    """Says that a step found something else than it must.

    Args:
        what: Was compared.
        where: Of what: a case, a layer, a request.
        expected: What had to be there.
        found: What was.
    """

    def __init__(self, what: str, *, where: str, expected: Any, found: Any) -> None:
        super().__init__(f"{what} ({where}): expected {expected}, found {found}")


def require(holds: bool, what: str, *, where: str, expected: Any, found: Any) -> None:
    """Raise CheckFailed where something does not hold."""
    if not holds:
        raise CheckFailed(what, where=where, expected=expected, found=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Says how much a step does.

    Attributes:
        hidden_size: Of the policies that are made for it, with four heads.
        num_layers: Of those policies.
        vocabulary: Words of those policies.
        policies: Architectures that are compared, names of `policies.POLICIES`.
        most_schemes: Of those that can run, so many have engines of their own where each needs one.
        num_requests: Requests of a comparison.
        num_tokens: Tokens of each response of a comparison.
        max_num_seqs: Requests that run at once.
        num_samples: Samples of a test of distributions.
        trained_policy: Size of the embedded policy that answers the questions of its task.
        num_prompts: Of those questions, each answered in so many tokens at most:
        response_tokens: See above.
        large_weight: [outputs, inputs] of the largest weight that is quantized.
        limit_bytes: Memory of an engine's KV cache.
        layers: [outputs, inputs, layers] of the weights whose requantizing is timed.
        draws: [requests, words] of the draws that are timed.
    """

    hidden_size: int = 256
    num_layers: int = 2
    vocabulary: int = 128
    policies: tuple[str, ...] = ("qwen3", "qwen2-tied", "llama")
    most_schemes: int = 3
    num_requests: int = 8
    num_tokens: int = 48
    max_num_seqs: int = 64
    num_samples: int = 8192
    trained_policy: str = "small"
    num_prompts: int = 256
    response_tokens: int = 384
    # More than 2**31 weights.
    large_weight: tuple[int, int] = (152064, 16384)
    limit_bytes: int = 1 << 28
    layers: tuple[tuple[int, int, int], ...] = (
        # Of Qwen2.5-7B; the last is the output head.
        (4608, 3584, 28), (3584, 3584, 28), (37888, 3584, 28), (3584, 18944, 28), (152064, 3584, 1),
    )  # fmt: skip
    draws: tuple[int, int] = (64, 152064)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Describes where a step runs.

    Attributes:
        device: "cuda", or "cpu", where Triton's interpreter runs the kernels.
        folder: For files that a step makes.
        dtype: Of the policies, as vLLM names it.
        sizes: How much to do.
        worker: Dotted path of the worker class of engines that draft.
        recording_worker: The same, of engines that are measured.
        start: `vllm.LLM`, or what stands for it; none of the three where steps start no engine.
        operators: Where the compiled operators of vLLM are.
        shapes: Names of the shapes that are measured.
    """

    device: str
    folder: Path
    dtype: str
    sizes: Sizes
    worker: str = ""
    recording_worker: str = ""
    start: Callable[..., Any] | None = None
    operators: Any = None
    shapes: tuple[str, ...] = ()

    @property
    def is_gpu(self) -> bool:
        """Tell whether there are CUDA graphs, and memory to be told apart."""
        return self.device == "cuda"

    @contextmanager
    def engine(self, policy: Path, settings: Settings | None = None, **options: Any) -> Iterator[Any]:
        """Start an engine in this process, ended when the block ends.

        Args:
            policy: Its folder.
            settings: It drafts as they say, and as requests ask the scripted scheduler; None: stock vLLM.
            options: vLLM's, in the place of the check's own.
        """
        arguments: dict[str, Any] = {
            "model": str(policy),
            "dtype": self.dtype,
            "skip_tokenizer_init": True,
            "enforce_eager": True,
            "max_model_len": 256,
            "max_num_seqs": self.sizes.max_num_seqs,
            "max_num_batched_tokens": 2048,
            "enable_prefix_caching": False,
            "disable_log_stats": True,
            "max_logprobs": -1,
            "kv_cache_memory_bytes": self.sizes.limit_bytes,
            "seed": 0,
        }
        if self.is_gpu:
            # Checked at an engine's start, when the one before it may still hold some.
            arguments["gpu_memory_utilization"] = 0.5
        if settings is not None:
            arguments |= drafting_options(str(policy), settings, self.worker)
        engine = self.start(**arguments | options)
        try:
            yield engine
        finally:
            engine.llm_engine.engine_core.shutdown()
            del engine
            end_engine()

    def start_measured(
        self, model: str, limits: "EngineLimits", settings: Settings | None, *, spoiled_share: float = 0.0
    ) -> Any:
        """Start an engine of random weights, none of them on disk, as `starting.start_engine` does.

        Args:
            model: Folder of a shape.
            limits: Of the engine.
            settings: It drafts as they say, and as requests ask, and is recorded; None: stock vLLM.
            spoiled_share: Of drafts that are made wrong, see `RecordingV2.spoil_drafts`.
        """
        ours = {} if settings is None else drafting_options(model, settings, self.recording_worker)
        engine = self.start(**limits.to_args(model) | ours | {"load_format": "dummy"})
        if settings is not None:
            engine.collective_rpc("spoil_drafts", args=(spoiled_share,))
        return engine

    def wait(self) -> None:
        """Wait for what a GPU has not done yet."""
        if self.is_gpu:
            import torch

            torch.cuda.synchronize()

    def free_bytes(self) -> int | None:
        """Return the memory of the GPU that nothing uses; None where there is no GPU."""
        if not self.is_gpu:
            return None
        import torch

        gc.collect()
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info()[0])


def drafting_options(policy: str, settings: Settings, worker: str) -> dict[str, Any]:
    """Return vLLM's options of an engine that drafts, as requests ask the scripted scheduler.

    Args:
        policy: Its folder.
        settings: Of this package.
        worker: Dotted path of its worker class.
    """
    from efficient_rollout.engine.engine_args import drafting_args

    ours = {"worker_cls": worker, "additional_config": {CONFIG_KEY: settings.to_dict()}}
    return ours | drafting_args(policy, settings) | {"scheduler_cls": SCHEDULER}


def end_engine() -> None:
    """Give back what an engine that was shut down held in this process."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


def worker_of(engine: Any) -> Any:
    """Return the worker of an engine in this process."""
    return engine.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


def drafting(
    scheme: str, max_draft_tokens: int, *, lookup: str = "off", rule: str = "always", profile: Path | None = None
) -> Settings:
    """Return settings of an engine whose scheduler is scripted.

    Rule and profile are for requests without a script.
    """
    return Settings.parse(
        {
            "drafter": {"scheme": scheme, "group_size": 128, "lookup": lookup},
            "controller": {
                "rule": rule,
                "max_draft_tokens": max_draft_tokens,
                "profile": None if profile is None else str(profile),
            },
        }
    )


def available_schemes() -> dict[str, str | None]:
    """Return the schemes that quantize -> what each lacks here; None where it can run."""
    from efficient_rollout.config import DrafterSettings
    from efficient_rollout.drafter.schemes import cuda_schemes

    schemes = cuda_schemes(DrafterSettings(group_size=128))
    return {name: scheme.missing() for name, scheme in schemes.items() if scheme.layer is not None}


def runnable_schemes() -> list[str]:
    """Return the schemes that quantize, and can run here.

    Raises:
        CheckFailed: There is none.
    """
    schemes = available_schemes()
    found = [name for name, missing in schemes.items() if missing is None]
    require(bool(found), "schemes that can run", where="this GPU", expected="one or more", found=schemes)
    return found
