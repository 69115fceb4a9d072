"""Subclasses of OpenRLHF's trainers and models.

Ray ships a class that can be imported by its name, so a job's processes import this module, and its subclasses by name.
"""

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
    """Stands before a class that asks engines for samples, among a class's bases: prompts go out with their places."""

    def __init__(self, pretrain: Any, strategy: Any, *args: Any, **kwargs: Any) -> None:
        seed = strategy.args.efficient_rollout.rollout_seed
        self.places = PromptPlaces()
        if seed is not None:
            # OpenRLHF shuffles prompts by a number that this process draws while it makes its data loaders.
            torch.manual_seed(request_seed(seed, "prompts"))
        super().__init__(pretrain, strategy, *args, **kwargs)
        place_prompts(self.samples_generator, self.places)
        # What ended an engine at its start is told now: groups for weights would wait for it, and say something else.
        ray.get([engine.get_num_unfinished_requests.remote() for engine in self.samples_generator.vllm_engines])


class _Reporting:
    """Stands before a trainer among a class's bases: every step's engine statistics go to its loggers and the files."""

    def __init__(self, pretrain: Any, strategy: Any, *args: Any, **kwargs: Any) -> None:
        options = strategy.args.ckpt
        self._checkpoints = Path(options.path) / "_actor"
        resumed = resumed_checkpoint(self._checkpoints) if options.load_enable else None
        self._files = StepFiles(Path(options.output_dir), resumed)
        with one_wandb_run(self._files.run_id):
            super().__init__(pretrain, strategy, *args, **kwargs)
        if self.wandb_logger:
            self.wandb_logger.handle = ReportingWandb(self.wandb_logger.handle, Path(options.output_dir))

    def train_step(self, rollout_samples: Sequence[Any], global_step: int) -> Any:
        """Do as stock does; a reproducible run must not depend on the order in which groups finished."""
        if self.args.efficient_rollout.rollout_seed is not None:
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
            mark_checkpoint(self._checkpoints / f"global_step{global_step}", self._files.run_id)

    def save_best_checkpoint(self, eval_metrics: Any, global_step: int, client_states: Any = None) -> None:
        """Do as stock does, with the run's id beside the checkpoint."""
        before = self.best_eval_metric_value
        super().save_best_checkpoint(eval_metrics, global_step, client_states)
        if self.best_eval_metric_value > before:
            mark_checkpoint(self._checkpoints / f"best_global_step{global_step}", self._files.run_id)

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
    """Is stock, but for engines being told that a weight sync begins, and what it will bring."""

    def broadcast_to_vllm(self) -> None:
        """Do as stock does; engines get the checksums of what follows first, where this rank has whole parameters."""
        if torch.distributed.get_rank() == 0:
            layout = self.strategy.args.ds
            is_whole = layout.zero_stage < 3 and layout.tensor_parallel_size == 1
            told = self._checksums() if is_whole else None
            ray.get([engine.begin_sync.remote(told) for engine in self.trainer.vllm_engines])
        super().broadcast_to_vllm()

    def _checksums(self) -> list[int]:
        actor = self.trainer.actor
        # As stock chooses what it sends.
        is_visual = getattr(actor, "is_vlm", False)
        sums = [
            columns.checksum(name, parameter)
            for name, parameter in actor.model.module.named_parameters()
            if parameter.requires_grad or not is_visual
        ]
        return torch.stack(sums).tolist()  # one wait for the device, not one a parameter


# Stock, and here for their processes to have the stand-ins.
class Critic(written_class(stock_critic.CriticModelActor)):
    """Is OpenRLHF's critic."""


class Reference(written_class(stock_launcher.ReferenceModelActor)):
    """Is OpenRLHF's reference model."""


class Reward(written_class(stock_launcher.RewardModelActor)):
    """Is OpenRLHF's reward model."""


def resumed_checkpoint(checkpoints: Path) -> Path | None:
    """Return the newest checkpoint in OpenRLHF's folder of the policy's; None where there is none."""
    newest = checkpoints / "latest"  # DeepSpeed's
    return newest.with_name(newest.read_text(encoding="utf-8").strip()) if newest.is_file() else None


def segments_of(replies: Sequence[Any]) -> list[list[Segment]]:
    """Return, by engine, what several engine actors told of theirs."""
    return [[Segment.from_dict(raw) for raw in segments] for reply in replies for segments in reply]


def evaluation_metrics(segments: Sequence[Sequence[Segment]]) -> dict[str, float]:
    """Return the metrics of an evaluation, under names of their own."""
    reported = step_metrics(segments, validated=False)
    return {VALIDATION_PREFIX + name.removeprefix(names.PREFIX): value for name, value in reported.items()}


def probability_difference(experiences: Sequence[Any]) -> dict[str, float]:
    """Return the mean over sampled tokens of |engine's probability - trainer's|; nothing where the engine told none."""
    total, num_tokens = 0.0, 0
    for experience in experiences:
        engine, trainer = experience.rollout_log_probs, experience.action_log_probs
        if engine is None or trainer is None:
            return {}
        mask = experience.action_mask.bool()
        total += (engine[mask].double().exp() - trainer[mask].double().exp()).abs().sum().item()
        num_tokens += int(mask.sum())
    return {names.PROBABILITY_DIFFERENCE: total / num_tokens} if num_tokens else {}
