"""OpenRLHF's engine, with this package's arguments, and what starts it in the place of OpenRLHF's own.

Ray ships a class that can be imported by its name, so a job's processes import this module, and its subclasses by name.
"""

import asyncio
import contextvars
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from efficient_rollout.openrlhf_plugin import stand_ins  # noqa: F401 - first: what this machine lacks

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
    """Is OpenRLHF's engine, with this package's arguments and a record of what it did."""

    worker_extension = "efficient_rollout.openrlhf_plugin.worker_extension.EfficientWorkerWrap"

    async def __init__(self, *args: Any, efficient_rollout: Mapping[str, Any], **kwargs: Any) -> None:
        self._rollouts = SegmentRecorder()
        self._evaluation: SegmentRecorder | None = None
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
        """Do as stock does, with a seed of each sample's own, and an evaluation's longest draft, as the settings say.

        Raises:
            PluginInactiveError: They say so, and nobody told the prompt's place in the run.
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
            base = request_seed(seed, *place, sample)
            _TRAJECTORY.set(TrajectorySeeds(base))  # of this task alone
            return await stock(*args, sampling_params=_seeded(sampling_params, base), num_samples=1, **kwargs)

        answers = await asyncio.gather(*(answer(sample) for sample in range(num_samples)))
        return [response for responses in answers for response in responses]

    async def generate(self, prompt_token_ids: list[int], sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
        """Generate as stock does, inside the clock of the rollout."""
        if trajectory := _TRAJECTORY.get(None):
            seed = trajectory.next_seed(prompt_token_ids, sampling_params.seed)
            sampling_params = _seeded(sampling_params, seed)
        record = self._evaluation or self._rollouts
        record.request_came()
        output = await super().generate(prompt_token_ids, sampling_params, *args, **kwargs)
        record.response_went()
        return output

    async def begin_sync(self, checksums: list[int] | None) -> None:
        """Close the running segment; the weight sync that follows is held to its sender's checksums, in its order."""
        await self._rollouts.close(self.llm)
        await call_every_engine(self.llm, "expect_checksums", checksums)

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


@dataclass(frozen=True)
class EngineActorDoor:
    """Stands in for `RolloutRayActor` where OpenRLHF starts its engines: `.options(...).remote(...)`."""

    actor_class: type
    settings: Settings
    vllm_arguments: Mapping[str, Any]

    def options(self, **options: Any) -> Any:
        """Return what starts an engine, with this package's settings beside OpenRLHF's arguments."""
        actor_class = ray.remote(self.actor_class).options(**options)
        ours = {**self.vllm_arguments, "efficient_rollout": self.settings.to_dict()}
        return SimpleNamespace(remote=lambda **kwargs: actor_class.remote(**{**kwargs, **ours}))


def _seeded(sampling_params: Any, seed: int) -> Any:
    """Return the same sampling parameters with this seed."""
    seeded = sampling_params.clone()
    seeded.seed = seed
    return seeded
