"""The actors of a job without a GPU: this package's and OpenRLHF's own, in processes with the stand-ins."""

# ruff: noqa: E402

from collections.abc import Mapping
from typing import ClassVar

from efficient_rollout.openrlhf_plugin import cpu

# Before anything of OpenRLHF's: some of it imports GPU packages, and takes functions out of modules.
cpu.install()

from openrlhf.trainer.ray import launcher as stock_launcher
from openrlhf.trainer.ray import ppo_actor as stock_actor
from openrlhf.trainer.ray import ppo_critic as stock_critic

from efficient_rollout.openrlhf_plugin import actors
from efficient_rollout.openrlhf_plugin.engine_actor import EngineActor, written_class


class CpuEngineActor(EngineActor):
    """Has the worker extension that needs no CUDA."""

    worker_extension = "efficient_rollout.openrlhf_plugin.cpu_worker_extension.CpuWorkerWrap"


class CpuPolicy(written_class(stock_actor.PolicyModelActor)):
    """Is stock, and stands here for its process to have the stand-ins."""


class CpuCritic(written_class(stock_critic.CriticModelActor)):
    """Is stock, and stands here for its process to have the stand-ins."""


class CpuReference(written_class(stock_launcher.ReferenceModelActor)):
    """Is stock, and stands here for its process to have the stand-ins."""


class CpuReward(written_class(stock_launcher.RewardModelActor)):
    """Is stock, and stands here for its process to have the stand-ins."""


class CpuTrainer(actors.Trainer):
    """Stands here for its process to have the stand-ins."""


class CpuAsyncTraining(actors.AsyncTraining):
    """Stands here for its process to have the stand-ins."""


class CpuAsyncGeneration(actors.AsyncGeneration):
    """Stands here for its process to have the stand-ins."""


class CpuAsyncTrainer(actors.AsyncTrainer):
    """Stands here for its process, and for those it starts, to have the stand-ins."""

    halves: ClassVar[Mapping[str, type]] = {
        "TrainingActor": CpuAsyncTraining,
        "GenerateSamplesActor": CpuAsyncGeneration,
    }
