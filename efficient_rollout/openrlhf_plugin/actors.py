"""Subclasses of OpenRLHF's Ray actors, and what puts them in the place of its own.

Ray ships a class that can be imported by its name, so a job's processes import this module, and its subclasses by name.
"""

import asyncio
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import ray
import torch
from openrlhf.trainer import ppo_trainer as stock_trainer
from openrlhf.trainer import ppo_trainer_async as stock_async
from openrlhf.trainer.ray import vllm_engine as stock_engine

from efficient_rollout.config import Settings
from efficient_rollout.engine.engine_args import engine_args
from efficient_rollout.engine.statistics import SegmentRecorder, call_every_engine
from efficient_rollout.errors import PluginInactiveError
from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_record import VALIDATION_PREFIX, Segment, step_metrics, step_timelines
from efficient_rollout.metrics.step_file import StepFiles
from efficient_rollout.metrics.timeline import StepTimelines
from efficient_rollout.sampling.noise import request_seed


def written_class(actor_class: Any) -> Any:
    """The class that Ray made of an actor's class; a subclass of it travels by name.

    The class under that one will not do: Ray derives from its subclasses once more and ships the result by value, with
    a second copy of every method, in which `super()` fails.
    """
    return actor_class.__ray_metadata__.modified_class


class EngineActor(written_class(stock_engine.RolloutRayActor)):
    """OpenRLHF's engine, with this package's arguments and a record of what it did.

    Attributes:
        worker_extension: Of vLLM's workers.
    """

    worker_extension = "efficient_rollout.openrlhf_plugin.worker_extension.EfficientWorkerWrap"

    async def __init__(self, *args: Any, efficient_rollout: Mapping[str, Any], **kwargs: Any) -> None:
        self._record = SegmentRecorder()
        self._is_syncing = False
        self._num_syncs = 0
        settings = Settings.parse(efficient_rollout)
        self._rollout_seed = settings.rollout_seed
        kwargs["worker_extension_cls"] = self.worker_extension
        options = {name: kwargs[name] for name in ("dtype", "enforce_eager", "trust_remote_code") if name in kwargs}
        kwargs |= engine_args(kwargs["model"], settings, **options)
        await super().__init__(*args, **kwargs)
        await self._require_active()

    async def _require_active(self) -> None:
        for worker in (await call_every_engine(self.llm, "plugin_status"))[0]:
            wrong = {name: found for name, found in worker["patches"].items() if found not in ("applied", "not needed")}
            if worker["drafter_fault"] is not None or wrong:
                raise PluginInactiveError(
                    f"self-drafting is not active in this engine: {worker['drafter_fault'] or wrong}. "
                    "Run `efficient-rollout doctor` on its node."
                )

    async def generate_responses(
        self, prompt: str, label: str, sampling_params: Any, *args: Any, num_samples: int = 1, **kwargs: Any
    ) -> list[Any]:
        """Stock; where rollouts are to be reproducible, each sample is asked for with a seed of its own."""
        stock = super().generate_responses
        if self._rollout_seed is None:
            return await stock(prompt, label, sampling_params, *args, num_samples=num_samples, **kwargs)
        answers = await asyncio.gather(
            *(
                stock(prompt, label, _seeded(sampling_params, self._rollout_seed, self._num_syncs, prompt, sample),
                      *args, num_samples=1, **kwargs)
                for sample in range(num_samples)
            )
        )  # fmt: skip
        return [response for responses in answers for response in responses]

    async def generate(self, prompt_token_ids: list[int], sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
        """Stock generation, inside the clock of the rollout."""
        if self._rollout_seed is not None and sampling_params.seed is not None:
            # Several requests of one trajectory must not share their noise.
            sampling_params = _seeded(sampling_params, sampling_params.seed, len(prompt_token_ids))
        self._record.request_came()
        output = await super().generate(prompt_token_ids, sampling_params, *args, **kwargs)
        self._record.response_went()
        return output

    async def update_weight(self, name: str, dtype: Any, shape: Any, empty_cache: bool = False) -> Any:
        """Stock; the first parameter of a sync closes the running segment first."""
        await self._close_segment(is_last=empty_cache)
        return await super().update_weight(name, dtype, shape, empty_cache)

    async def update_weight_cuda_ipc(
        self, name: str, dtype: Any, shape: Any, ipc_handles: Any, empty_cache: bool = False
    ) -> Any:
        """Stock; the first parameter of a sync closes the running segment first."""
        await self._close_segment(is_last=empty_cache)
        return await super().update_weight_cuda_ipc(name, dtype, shape, ipc_handles, empty_cache)

    async def _close_segment(self, *, is_last: bool) -> None:
        starts, self._is_syncing = not self._is_syncing, not is_last
        if starts:
            self._num_syncs += 1
            await self._record.close(self.llm)

    async def take_segments(self) -> list[list[dict[str, Any]]]:
        """What each engine did since the last call, a segment for each weight sync and one since the last."""
        return await self._record.take(self.llm)

    async def rollout_seed(self) -> int | None:
        """The setting; None where rollouts need not be reproducible."""
        return self._rollout_seed


class _Reporting:
    """Before a trainer among a class's bases: every step's engine statistics, into its loggers and the run's files."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        engines = inspect.signature(super().__init__).bind(*args, **kwargs).arguments["vllm_engines"]
        seed = ray.get(engines[0].rollout_seed.remote())
        self._is_reproducible = seed is not None
        if seed is not None:
            # OpenRLHF shuffles prompts by a number that this process draws while it makes its data loaders.
            torch.manual_seed(request_seed(seed, "prompts"))
        super().__init__(*args, **kwargs)
        self._files = StepFiles(Path(self.args.ckpt.output_dir))

    def train_step(self, rollout_samples: Sequence[Any], global_step: int) -> Any:
        """Stock; groups come in the order in which they were finished, which a reproducible run must not depend on."""
        if self._is_reproducible:
            rollout_samples = sorted(rollout_samples, key=lambda sample: (sample.prompts, sample.labels))
        return super().train_step(rollout_samples, global_step)

    def _compute_rollout_stats(self, experiences: Sequence[Any]) -> dict[str, float]:
        """Stock, and how far engine and trainer agree."""
        return super()._compute_rollout_stats(experiences) | probability_difference(experiences)

    def save_logs_and_checkpoints(
        self, global_step: int, logs_dict: Mapping[str, Any] | None = None, client_states: Any = None
    ) -> None:
        """Stock, with the step's logs completed."""
        segments = self._take_segments()
        logs = dict(logs_dict or {}) | step_metrics(segments, validated=False)
        self._files.add_timelines(StepTimelines.of(global_step, step_timelines(segments, validated=False)))
        self._files.append(global_step, {name: value for name, value in logs.items() if name != "generated_samples"})
        super().save_logs_and_checkpoints(global_step, logs, client_states)

    def evaluate(self, global_step: int, **kwargs: Any) -> Any:
        """Stock; what the engines did for it is a record of its own, and no part of the next rollout."""
        logs = super().evaluate(global_step, **kwargs)
        reported = step_metrics(self._take_segments(), validated=False)
        renamed = {VALIDATION_PREFIX + name.removeprefix(names.PREFIX): value for name, value in reported.items()}
        self._files.append(global_step, dict(logs) | renamed)
        return logs

    def _take_segments(self) -> list[list[Segment]]:
        replies = ray.get([engine.take_segments.remote() for engine in self.vllm_engines])
        return [[Segment.from_dict(raw) for raw in segments] for reply in replies for segments in reply]


class Trainer(_Reporting, written_class(stock_trainer.PPOTrainer)):
    """The single controller of a synchronous job."""


class AsyncTraining(_Reporting, written_class(stock_async.TrainingActor)):
    """The half of an asynchronous job that trains; evaluation is the other half's."""


class AsyncTrainer(written_class(stock_async.PPOTrainerAsync)):
    """Starts both halves of an asynchronous job, by the names they have in OpenRLHF's module.

    Attributes:
        halves: Name there to the class that takes its place.
    """

    halves: ClassVar[Mapping[str, type]] = {"TrainingActor": AsyncTraining}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name, ours in self.halves.items():
            setattr(stock_async, name, ray.remote(ours))
        super().__init__(*args, **kwargs)


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
        """The same, for an actor with these options of Ray's."""
        return dataclasses.replace(self, options_given=options)

    def remote(self, **kwargs: Any) -> Any:
        """Start the engine, with this package's settings beside OpenRLHF's arguments."""
        actor_class = ray.remote(self.actor_class).options(**self.options_given)
        return actor_class.remote(**{**kwargs, **self.vllm_arguments}, efficient_rollout=self.settings.to_dict())


def _seeded(sampling_params: Any, seed: int, *parts: int | str) -> Any:
    """The same sampling parameters with the seed of what is named."""
    seeded = sampling_params.clone()
    seeded.seed = request_seed(seed, *parts)
    return seeded


def probability_difference(experiences: Sequence[Any]) -> dict[str, float]:
    """Mean over sampled tokens of |engine's probability - trainer's|; nothing where the engine was asked for none."""
    total, num_tokens = 0.0, 0
    for experience in experiences:
        engine, trainer = experience.rollout_log_probs, experience.action_log_probs
        if engine is None or trainer is None:
            return {}
        mask = experience.action_mask.bool()
        total += (engine[mask].double().exp() - trainer[mask].double().exp()).abs().sum().item()
        num_tokens += int(mask.sum())
    return {names.PROBABILITY_DIFFERENCE: total / num_tokens} if num_tokens else {}
