"""Subclasses of OpenRLHF's trainers and models.

Ray ships a class that can be imported by its name, so a job's processes import this module, and its subclasses by name.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efficient_rollout.openrlhf_plugin import stand_ins  # noqa: F401 - first: what this machine lacks

# isort: split

import ray
import torch
from openrlhf.trainer import ppo_trainer as stock_trainer
from openrlhf.trainer import ppo_trainer_async as stock_async
from openrlhf.trainer.ray import launcher as stock_launcher
from openrlhf.trainer.ray import ppo_actor as stock_actor
from openrlhf.trainer.ray import ppo_critic as stock_critic

from efficient_rollout.dashboards.wandb_panel import ReportingWandb
from efficient_rollout.drafter import columns
from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_record import VALIDATION_PREFIX, Segment, step_metrics, step_timelines
from efficient_rollout.metrics.step_file import StepFiles, mark_checkpoint, one_wandb_run
from efficient_rollout.openrlhf_plugin.engine_actor import written_class
from efficient_rollout.openrlhf_plugin.seeded_prompts import PromptPlaces, in_order, place_prompts
from efficient_rollout.sampling.noise import request_seed


class _Asking:
    """Stands before a class that asks engines for samples, among another's bases: each prompt goes out with its place.

    Attributes:
        places: Of the prompts.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        seed = _rollout_seed(_given(type(self), args, kwargs)["vllm_engines"])
        self.places = PromptPlaces()
        if seed is not None:
            # OpenRLHF shuffles prompts by a number that this process draws while it makes its data loaders.
            torch.manual_seed(request_seed(seed, "prompts"))
        super().__init__(*args, **kwargs)
        place_prompts(self.samples_generator, self.places)


class _Reporting:
    """Stands before a trainer among a class's bases.

    It brings every step's engine statistics into its loggers and the run's files.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = _given(type(self), args, kwargs)
        options = given["strategy"].args
        self._is_reproducible = _rollout_seed(given["vllm_engines"]) is not None
        self._files = StepFiles(Path(options.ckpt.output_dir), resumed_checkpoint(options.ckpt))
        with one_wandb_run(self._files.run_id):
            super().__init__(*args, **kwargs)
        if self.wandb_logger:
            self.wandb_logger.handle = ReportingWandb(self.wandb_logger.handle, Path(options.ckpt.output_dir))

    def train_step(self, rollout_samples: Sequence[Any], global_step: int) -> Any:
        """Do as stock does.

        Groups come in the order in which they finished, and a reproducible run must not depend on it.
        """
        if self._is_reproducible:
            rollout_samples = in_order(list(rollout_samples), num_samples=self.args.rollout.n_samples_per_prompt)
        return super().train_step(rollout_samples, global_step)

    def _compute_rollout_stats(self, experiences: Sequence[Any]) -> dict[str, float]:
        """Do as stock does, and tell how far engine and trainer agree."""
        return super()._compute_rollout_stats(experiences) | probability_difference(experiences)

    def save_logs_and_checkpoints(
        self, global_step: int, logs_dict: Mapping[str, Any] | None = None, client_states: Any = None
    ) -> None:
        """Do as stock does, with the step's logs completed."""
        segments = self._take_segments()
        logs = dict(logs_dict or {}) | step_metrics(segments, validated=False)
        numbers = {name: value for name, value in logs.items() if name != "generated_samples"}
        self._files.append(global_step, numbers, step_timelines(global_step, segments, validated=False))
        super().save_logs_and_checkpoints(global_step, logs, client_states)
        if global_step % self.args.ckpt.save_steps == 0:
            self._mark(f"global_step{global_step}")

    def save_best_checkpoint(self, eval_metrics: Any, global_step: int, client_states: Any = None) -> None:
        """Do as stock does, with the run's id beside the checkpoint."""
        before = self.best_eval_metric_value
        super().save_best_checkpoint(eval_metrics, global_step, client_states)
        if self.best_eval_metric_value > before:
            self._mark(f"best_global_step{global_step}")

    def _mark(self, tag: str) -> None:
        mark_checkpoint(checkpoints(self.args.ckpt) / tag, self._files.run_id)

    def evaluate(self, global_step: int, **kwargs: Any) -> Any:
        """Do as stock does; what the engines did for it is a record of its own, and no part of the next rollout."""
        logs = super().evaluate(global_step, **kwargs)
        self._files.append(global_step, dict(logs) | evaluation_metrics(self._take_segments()), is_validation=True)
        return logs

    def _take_segments(self) -> list[list[Segment]]:
        return segments_of(ray.get([engine.take_segments.remote() for engine in self.vllm_engines]))


class Trainer(_Reporting, _Asking, written_class(stock_trainer.PPOTrainer)):
    """Is the single controller of a synchronous job."""

    def init_checkpoint_states(self) -> dict[str, Any]:
        """Do as stock does; a run that resumes goes on counting its prompts."""
        states = super().init_checkpoint_states()
        self.places.num_prompts = states["total_consumed_prompts"]
        return states


class AsyncGeneration(_Asking, written_class(stock_async.GenerateSamplesActor)):
    """Is the half of an asynchronous job that asks for samples."""

    def fit(self, episode: int, total_consumed_prompts: int) -> None:
        """Do as stock does; a run that resumes goes on counting its prompts."""
        self.places.num_prompts = total_consumed_prompts
        super().fit(episode, total_consumed_prompts)

    def _run_eval(self) -> dict[str, Any]:
        """Do as stock does, with what the engines did for it, which is no part of a rollout."""
        engines = self.samples_generator.vllm_engines
        ray.get([engine.begin_evaluation.remote() for engine in engines])
        logs = super()._run_eval()
        segments = segments_of(ray.get([engine.end_evaluation.remote() for engine in engines]))
        return logs | evaluation_metrics(segments)


class AsyncTraining(_Reporting, written_class(stock_async.TrainingActor)):
    """Is the half of an asynchronous job that trains; it is told of the other half's evaluations."""

    def save_best_checkpoint(self, eval_metrics: Any, global_step: int, client_states: Any = None) -> None:
        """Do as stock does. Stock calls it with every evaluation; each is a record of its own."""
        self._files.append(global_step, eval_metrics, is_validation=True)
        super().save_best_checkpoint(eval_metrics, global_step, client_states)


class AsyncTrainer(written_class(stock_async.PPOTrainerAsync)):
    """Starts both halves of an asynchronous job, by the names they have in OpenRLHF's module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        stock_async.TrainingActor = ray.remote(AsyncTraining)
        stock_async.GenerateSamplesActor = ray.remote(AsyncGeneration)
        super().__init__(*args, **kwargs)


class Policy(written_class(stock_actor.PolicyModelActor)):
    """Is stock, but for engines being told what each weight sync will bring."""

    def broadcast_to_vllm(self) -> None:
        """Do as stock does; engines get the checksums of what follows first, where this rank has whole parameters."""
        trainer, layout = self.trainer, self.strategy.args.ds
        is_whole = layout.zero_stage < 3 and layout.tensor_parallel_size == 1
        if is_whole and torch.distributed.get_rank() == 0:
            # As stock chooses what it sends.
            is_visual = getattr(trainer.actor, "is_vlm", False)
            sums = [
                columns.checksum(name, parameter)
                for name, parameter in trainer.actor.model.module.named_parameters()
                if parameter.requires_grad or not is_visual
            ]
            told = torch.stack(sums).tolist()  # one wait for the device, not one a parameter
            ray.get([engine.expect_checksums.remote(told) for engine in trainer.vllm_engines])
        super().broadcast_to_vllm()


class Critic(written_class(stock_critic.CriticModelActor)):
    """Is stock, and stands here for its process to have the stand-ins."""


class Reference(written_class(stock_launcher.ReferenceModelActor)):
    """Is stock, and stands here for its process to have the stand-ins."""


class Reward(written_class(stock_launcher.RewardModelActor)):
    """Is stock, and stands here for its process to have the stand-ins."""


def checkpoints(options: Any) -> Path:
    """Return where OpenRLHF keeps the policy's checkpoints, from its `--ckpt` options."""
    return Path(options.path) / "_actor"


def resumed_checkpoint(options: Any) -> Path | None:
    """Return the folder that OpenRLHF's trainer resumes from, from its `--ckpt` options; None where it starts anew."""
    newest = checkpoints(options) / "latest"  # DeepSpeed's
    if not options.load_enable or not newest.is_file():
        return None
    return newest.with_name(newest.read_text(encoding="utf-8").strip())


def _given(ours: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what OpenRLHF's own class under one of ours is made with, by name."""
    signatures = (inspect.signature(base.__init__) for base in ours.__mro__)
    stock = next(signature for signature in signatures if "vllm_engines" in signature.parameters)
    return stock.bind(None, *args, **kwargs).arguments


def _rollout_seed(engines: Sequence[Any]) -> int | None:
    seed: int | None = ray.get(engines[0].rollout_seed.remote())
    return seed


def segments_of(replies: Sequence[Any]) -> list[list[Segment]]:
    """Return, by engine, what several engine actors told of theirs."""
    return [[Segment.from_dict(raw) for raw in segments] for reply in replies for segments in reply]


def evaluation_metrics(segments: Sequence[Sequence[Segment]]) -> dict[str, float]:
    """Return the metrics of an evaluation, under names of their own."""
    reported = step_metrics(segments, validated=False)
    return {VALIDATION_PREFIX + name.removeprefix(names.PREFIX): value for name, value in reported.items()}


def probability_difference(experiences: Sequence[Any]) -> dict[str, float]:
    """Return the mean over sampled tokens of |engine's probability - trainer's|.

    Return nothing where the engine was asked for none.
    """
    total, num_tokens = 0.0, 0
    for experience in experiences:
        engine, trainer = experience.rollout_log_probs, experience.action_log_probs
        if engine is None or trainer is None:
            return {}
        mask = experience.action_mask.bool()
        total += (engine[mask].double().exp() - trainer[mask].double().exp()).abs().sum().item()
        num_tokens += int(mask.sum())
    return {names.PROBABILITY_DIFFERENCE: total / num_tokens} if num_tokens else {}
