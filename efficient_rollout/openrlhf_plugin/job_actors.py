"""The actors of a job, this package's and OpenRLHF's own, whose processes stand in for what their machine lacks."""

# ruff: noqa: E402

from collections.abc import Mapping
from typing import ClassVar

from efficient_rollout.engine.installed import device_type
from efficient_rollout.openrlhf_plugin import flash_attention

# Before anything of OpenRLHF's: some of it imports GPU packages, and takes functions out of modules.
flash_attention.stand_in()
IS_ON_CPU = device_type() == "cpu"
if IS_ON_CPU:
    from efficient_rollout.openrlhf_plugin import cpu

    cpu.install()

import ray
import torch
from openrlhf.trainer.ray import launcher as stock_launcher
from openrlhf.trainer.ray import ppo_actor as stock_actor
from openrlhf.trainer.ray import ppo_critic as stock_critic

from efficient_rollout.drafter import columns
from efficient_rollout.openrlhf_plugin import actors
from efficient_rollout.openrlhf_plugin.engine_actor import EngineActor, written_class


class JobEngine(EngineActor):
    """Has the worker extension that needs no CUDA where there is none."""

    if IS_ON_CPU:
        worker_extension = "efficient_rollout.openrlhf_plugin.cpu_worker_extension.CpuWorkerWrap"


class JobPolicy(written_class(stock_actor.PolicyModelActor)):
    """Is stock, but for engines being told what each weight sync will bring."""

    def broadcast_to_vllm(self) -> None:
        """Do as stock does; engines get the checksums of what follows first, where this rank has whole parameters."""
        trainer, layout = self.trainer, self.strategy.args.ds
        is_whole = layout.zero_stage < 3 and layout.tensor_parallel_size == 1
        if is_whole and torch.distributed.get_rank() == 0:
            # As stock chooses what it sends.
            is_visual = getattr(trainer.actor, "is_vlm", False)
            sums = [
                int(columns.checksum(name, parameter))
                for name, parameter in trainer.actor.model.module.named_parameters()
                if parameter.requires_grad or not is_visual
            ]
            ray.get([engine.expect_checksums.remote(sums) for engine in trainer.vllm_engines])
        super().broadcast_to_vllm()


class JobCritic(written_class(stock_critic.CriticModelActor)):
    """Is stock, and stands here for its process to have the stand-ins."""


class JobReference(written_class(stock_launcher.ReferenceModelActor)):
    """Is stock, and stands here for its process to have the stand-ins."""


class JobReward(written_class(stock_launcher.RewardModelActor)):
    """Is stock, and stands here for its process to have the stand-ins."""


class JobTrainer(actors.Trainer):
    """Stands here for its process to have the stand-ins."""


class JobAsyncTraining(actors.AsyncTraining):
    """Stands here for its process to have the stand-ins."""


class JobAsyncGeneration(actors.AsyncGeneration):
    """Stands here for its process to have the stand-ins."""


class JobAsyncTrainer(actors.AsyncTrainer):
    """Stands here for its process, and for those it starts, to have the stand-ins."""

    halves: ClassVar[Mapping[str, type]] = {
        "TrainingActor": JobAsyncTraining,
        "GenerateSamplesActor": JobAsyncGeneration,
    }
