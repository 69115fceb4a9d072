"""Where a step of the check runs: a device, a folder, sizes, and how engines are started there.

A step is a function of a stand, whatever its device: the functions that run on a GPU are those that tests run on a CPU.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from efficient_rollout.config import CONFIG_KEY, Settings

if TYPE_CHECKING:
    from efficient_rollout.measuring.starting import EngineLimits

_SCHEDULER = "efficient_rollout.measuring.scripted.AsyncScriptedScheduler"
# What a step measured, for the report; JSON types.
Measured = dict[str, Any]


class CheckFailed(Exception):
    """Says that a step found something else than it must."""

    def __init__(self, what: str, where: str, expected: Any, found: Any) -> None:
        super().__init__(f"{what} ({where}): expected {expected}, found {found}")


def require(holds: bool, what: str, where: str, expected: Any, found: Any) -> None:
    """Raise CheckFailed where something does not hold.

    Args:
        holds: Whether it does.
        what: Was compared.
        where: Of what: a case, a layer, a request.
        expected: What had to be there.
        found: What was.
    """
    if not holds:
        raise CheckFailed(what, where, expected, found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Says how much a step does."""

    hidden_size: int = 256  # of the policies that are made for it, with four heads
    num_layers: int = 2  # of those policies
    vocabulary: int = 128  # words of those policies
    policies: tuple[str, ...] = ("qwen3", "qwen2-tied", "llama")  # that are compared, names of `policies.POLICIES`
    most_schemes: int = 3  # of those that can run, so many have engines of their own where each needs one
    num_requests: int = 8  # of a comparison
    num_tokens: int = 48  # of each response of a comparison
    max_num_seqs: int = 64  # requests that run at once
    num_samples: int = 8192  # of a test of distributions
    trained_policy: str = "small"  # size of the embedded policy that answers the questions of its task
    num_prompts: int = 256  # of those questions
    response_tokens: int = 384  # of each answer to them, at most
    large_weight: tuple[int, int] = (152064, 16384)  # [outputs, inputs] of the largest: more than 2**31 weights
    # [outputs, inputs, layers] of the weights whose requantizing is timed: of Qwen2.5-7B, the output head last.
    layers: tuple[tuple[int, int, int], ...] = (
        (4608, 3584, 28), (3584, 3584, 28), (37888, 3584, 28), (3584, 18944, 28), (152064, 3584, 1),
    )  # fmt: skip
    draws: tuple[int, int] = (64, 152064)  # [requests, words] of the draws that are timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Describes where a step runs."""

    device: str  # "cuda", or "cpu", where Triton's interpreter runs the kernels
    folder: Path  # for files that a step makes
    dtype: str = "bfloat16"  # of the policies, as vLLM names it
    sizes: Sizes = Sizes()
    worker: str = ""  # dotted path of the worker class of engines that draft
    recording_worker: str = ""  # the same, of engines that are measured
    # `vllm.LLM`, or what stands for it; none of the three where steps start no engine.
    start: Callable[..., Any] | None = None
    operators: Any = None  # where the compiled operators of vLLM are
    shapes: tuple[str, ...] = ()  # names of the shapes that are measured

    @property
    def is_gpu(self) -> bool:
        """Tell whether there are CUDA graphs, and memory to be told apart."""
        return self.device == "cuda"

    @contextmanager
    def engine(
        self, policy: Path, settings: Settings | None = None, *, max_context_tokens: int = 256, **options: Any
    ) -> Iterator[Any]:
        """Start an engine in this process, ended when the block ends.

        Args:
            policy: Its folder.
            settings: It drafts as they say, and as requests ask the scripted scheduler; None: stock vLLM.
            max_context_tokens: Longest prompt and response together.
            options: vLLM's, in the place of the check's own.
        """
        from efficient_rollout.measuring.starting import EngineLimits

        limits = EngineLimits(
            max_requests=self.sizes.max_num_seqs,
            max_context_tokens=max_context_tokens,
            kv_cache_tokens=self.sizes.max_num_seqs * max_context_tokens,
            dtype=self.dtype,
            keeps_prefixes=False,
        )
        ours = {"max_logprobs": -1} | _drafting_options(str(policy), settings, self.worker)
        engine = self.start(**limits.to_args(str(policy)) | ours | options)
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

        A share of its drafts is made wrong, see `RecordingV2.spoil_drafts`.
        """
        ours = _drafting_options(model, settings, self.recording_worker)
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


def _drafting_options(policy: str, settings: Settings | None, worker: str) -> dict[str, Any]:
    """Return vLLM's options of an engine that drafts, as requests ask the scripted scheduler; none without settings."""
    if settings is None:
        return {}
    from efficient_rollout.engine.engine_args import drafting_args

    ours = {"worker_cls": worker, "additional_config": {CONFIG_KEY: settings.to_dict()}}
    return ours | drafting_args(policy, settings) | {"scheduler_cls": _SCHEDULER}


def end_engine() -> None:
    """Give back what an engine that was shut down held in this process."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


def worker_of(engine: Any) -> Any:
    """Return the worker of an engine in this process."""
    return engine.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


def median_seconds(stand: Stand, work: Callable[[], object], rounds: int = 3) -> float:
    """Return the median seconds of some rounds behind one that compiles."""
    seconds = []
    for _ in range(rounds + 1):
        stand.wait()
        started = time.perf_counter()
        work()
        stand.wait()
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def reload(engine: Any, policy: Path) -> None:
    """Sync a policy's weights into an engine, from its folder."""
    engine.collective_rpc("reload_weights", kwargs={"weights_path": str(policy)})


def drafting(scheme: str, max_draft_tokens: int, *, lookup: str = "off", **controller: str) -> Settings:
    """Return settings of an engine whose scheduler is scripted.

    Settings of the controller, such as a rule and its profile, are for requests without a script.
    """
    return Settings.parse(
        {
            "drafter": {"scheme": scheme, "group_size": 128, "lookup": lookup},
            "controller": {"rule": "always", "max_draft_tokens": max_draft_tokens} | controller,
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
    require(bool(found), "schemes that can run", "this GPU", "one or more", schemes)
    return found
