"""OpenRLHF's engine, with this package's arguments, and what starts it in the place of OpenRLHF's own.

Ray ships a class that can be imported by its name, so a job's processes import this module, and its subclasses by name.
"""

import asyncio
import contextvars
import dataclasses
from collections.abc import Mapping
from typing import Any

from efficient_rollout.openrlhf_plugin import stand_ins  # first: what this machine lacks

# isort: split

import ray
from openrlhf.trainer.ray import vllm_engine as stock_engine

from efficient_rollout.config import Settings
from efficient_rollout.engine.engine_args import RAY_EXECUTOR, engine_args
from efficient_rollout.engine.request_word import with_word
from efficient_rollout.engine.statistics import SegmentRecorder, call_every_engine
from efficient_rollout.errors import PluginInactiveError
from efficient_rollout.openrlhf_plugin.seeded_prompts import EVALUATION, Place
from efficient_rollout.patching import unfit
from efficient_rollout.sampling.noise import TrajectorySeeds, request_seed

_WORKER_EXTENSIONS = "efficient_rollout.openrlhf_plugin.worker_extension"
# OpenRLHF's name for the executor of an engine with several workers.
_RAY = "ray"
_TRAJECTORY: contextvars.ContextVar[TrajectorySeeds] = contextvars.ContextVar("trajectory")


def written_class(actor_class: Any) -> Any:
    """Return the class that Ray made of an actor's class; a subclass of it travels by name.

    The class under that one will not do: Ray derives from its subclasses once more and ships the result by value, with
    a second copy of every method, in which `super()` fails.
    """
    return actor_class.__ray_metadata__.modified_class


class EngineActor(written_class(stock_engine.RolloutRayActor)):
    """Is OpenRLHF's engine, with this package's arguments and a record of what it did.

    Attributes:
        worker_extension: Of vLLM's workers.
    """

    worker_extension = (
        f"{_WORKER_EXTENSIONS}.CpuWorkerWrap" if stand_ins.IS_ON_CPU else f"{_WORKER_EXTENSIONS}.EfficientWorkerWrap"
    )

    async def __init__(self, *args: Any, efficient_rollout: Mapping[str, Any], **kwargs: Any) -> None:
        self._rollouts = SegmentRecorder()
        self._evaluation: SegmentRecorder | None = None
        self._is_syncing = False
        settings = Settings.parse(efficient_rollout)
        self._rollout_seed = settings.rollout_seed
        self._longest_evaluated = settings.controller.validation_max_draft_tokens
        kwargs["worker_extension_cls"] = self.worker_extension
        names = ("dtype", "enforce_eager", "tensor_parallel_size", "trust_remote_code")
        options = {name: kwargs[name] for name in names if name in kwargs}
        has_bundles = kwargs.get("bundle_indices") is not None
        if has_bundles:
            # Its workers' actors have the GPUs, and Ray hides all of them from this one, where vLLM must see some.
            super()._configure_device_env(_RAY, None, None)
        kwargs |= engine_args(kwargs["model"], settings, **options)
        if has_bundles and settings.enabled:
            kwargs["distributed_executor_backend"] = RAY_EXECUTOR
        await super().__init__(*args, **kwargs)
        await self._require_active()

    def _configure_device_env(self, backend: Any, bundle_indices: Any, num_gpus: float) -> None:
        """Do as stock does, by its own name for the executor of several workers."""
        super()._configure_device_env(_RAY if bundle_indices is not None else backend, bundle_indices, num_gpus)

    async def _require_active(self) -> None:
        for worker in (await call_every_engine(self.llm, "plugin_status"))[0]:
            wrong = unfit(worker["patches"])
            if worker["drafter_fault"] is not None or wrong:
                raise PluginInactiveError(
                    f"self-drafting is not active in this engine: {worker['drafter_fault'] or wrong}. "
                    "Run `efficient-rollout doctor` on its node."
                )

    async def generate_responses(
        self, *args: Any, sampling_params: Any, num_samples: int = 1, place: Place | None = None, **kwargs: Any
    ) -> list[Any]:
        """Do as stock does; where rollouts are to be reproducible, each sample is asked for with a seed of its own.

        Where evaluations have a longest draft, they are asked for with that.

        Raises:
            PluginInactiveError: Either is so, and nobody told the prompt's place in the run.
        """
        stock, seed, longest = super().generate_responses, self._rollout_seed, self._longest_evaluated
        if place is None and (seed, longest) != (None, None):
            raise PluginInactiveError(
                "rollout_seed or controller.validation_max_draft_tokens is set, and a prompt came that did not go out "
                "through this package"
            )
        if place is not None and place[0] == EVALUATION and longest is not None:
            sampling_params = sampling_params.clone()
            sampling_params.extra_args = with_word(sampling_params.extra_args, longest)
        if seed is None or place is None:
            return await stock(*args, sampling_params=sampling_params, num_samples=num_samples, **kwargs)

        async def answer(sample: int) -> list[Any]:
            trajectory = TrajectorySeeds(request_seed(seed, *place, sample))
            _TRAJECTORY.set(trajectory)  # of this task alone
            seeded = _seeded(sampling_params, trajectory.base)
            return await stock(*args, sampling_params=seeded, num_samples=1, **kwargs)

        answers = await asyncio.gather(*(answer(sample) for sample in range(num_samples)))
        return [response for responses in answers for response in responses]

    async def generate(self, prompt_token_ids: list[int], sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
        """Generate as stock does, inside the clock of the rollout."""
        trajectory = _TRAJECTORY.get(None)
        if trajectory is not None:
            seed = trajectory.next_seed(prompt_token_ids, sampling_params.seed)
            sampling_params = _seeded(sampling_params, seed)
        record = self._evaluation or self._rollouts
        record.request_came()
        output = await super().generate(prompt_token_ids, sampling_params, *args, **kwargs)
        record.response_went()
        return output

    async def update_weight(self, name: str, dtype: Any, shape: Any, empty_cache: bool = False) -> Any:
        """Do as stock does; the first parameter of a sync closes the running segment first."""
        await self._close_segment(is_last=empty_cache)
        return await super().update_weight(name, dtype, shape, empty_cache)

    async def update_weight_cuda_ipc(
        self, name: str, dtype: Any, shape: Any, ipc_handles: Any, empty_cache: bool = False
    ) -> Any:
        """Do as stock does; the first parameter of a sync closes the running segment first."""
        await self._close_segment(is_last=empty_cache)
        return await super().update_weight_cuda_ipc(name, dtype, shape, ipc_handles, empty_cache)

    async def expect_checksums(self, checksums: list[int]) -> None:
        """Hold the next weight sync to what its sender computed of each tensor, in the order of sending."""
        await call_every_engine(self.llm, "expect_checksums", checksums)

    async def _close_segment(self, *, is_last: bool) -> None:
        starts, self._is_syncing = not self._is_syncing, not is_last
        if starts:
            await self._rollouts.close(self.llm)

    async def take_segments(self) -> list[list[dict[str, Any]]]:
        """Return what each engine did since the last call, a segment for each weight sync and one since the last."""
        if self._evaluation is not None:
            # What runs now is no rollout's.
            await self._evaluation.close(self.llm)
        return await self._rollouts.take(self.llm)

    async def begin_evaluation(self) -> None:
        """Begin an evaluation: from now on, what the engine does is no part of a rollout."""
        await self._rollouts.close(self.llm)
        self._evaluation = SegmentRecorder()

    async def end_evaluation(self) -> list[list[dict[str, Any]]]:
        """End the evaluation; return what each engine did for it, as `take_segments` tells it of rollouts."""
        assert self._evaluation is not None, "it began"
        segments = await self._evaluation.take(self.llm)
        self._evaluation = None
        return segments

    async def rollout_seed(self) -> int | None:
        """Return the setting; None where rollouts need not be reproducible."""
        return self._rollout_seed


@dataclasses.dataclass(frozen=True)
class EngineActorDoor:
    """Stands in for `RolloutRayActor` where OpenRLHF starts its engines: `.options(...).remote(...)`.

    Attributes:
        actor_class: What is started.
        settings: For every engine.
        vllm_arguments: In the place of OpenRLHF's.
        options_given: Ray's own, of the engine to be started.
    """

    actor_class: type
    settings: Settings
    vllm_arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options_given: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def options(self, **options: Any) -> "EngineActorDoor":
        """Return the same, for an actor with these options of Ray's."""
        return dataclasses.replace(self, options_given=options)

    def remote(self, **kwargs: Any) -> Any:
        """Start the engine, with this package's settings beside OpenRLHF's arguments."""
        actor_class = ray.remote(self.actor_class).options(**self.options_given)
        return actor_class.remote(**{**kwargs, **self.vllm_arguments}, efficient_rollout=self.settings.to_dict())


def _seeded(sampling_params: Any, seed: int) -> Any:
    """Return the same sampling parameters with this seed."""
    seeded = sampling_params.clone()
    seeded.seed = seed
    return seeded
