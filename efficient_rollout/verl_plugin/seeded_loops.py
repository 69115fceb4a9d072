"""Agent loops that give every request a seed of its own, so that a run is the same run whatever its engines did.

In the place of veRL's through its own option, `rollout.agent.agent_loop_manager_class`. veRL's `full_determinism` gives
all requests of an engine one seed, so that the responses of a group are equal.
"""

import json
from typing import Any

import ray
from omegaconf import DictConfig
from verl.experimental.agent_loop.agent_loop import AgentLoopManager, AgentLoopWorker
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from efficient_rollout.sampling.noise import request_seed
from efficient_rollout.verl_plugin.replay_buffer import OrderedReplayBuffer
from efficient_rollout.verl_plugin.settings import rollout_settings


class _Seeding:
    """Before an agent loop worker among a class's bases."""

    config: DictConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rollout_seed = rollout_settings(self.config.actor_rollout_ref.rollout.custom).rollout_seed
        assert self._rollout_seed is not None

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> Any:
        """Stock, for a trajectory whose requests are seeded by step, prompt and sample."""
        seed = request_seed(
            self._rollout_seed,
            "validation" if trajectory["validate"] else "training",
            int(kwargs.get("global_steps", trajectory["step"])),
            int(trajectory["sample_index"]),
            json.dumps(kwargs.get("raw_prompt"), default=str),
            # Which of a prompt's samples: the newer trainer counts those, the older one a batch's.
            int(kwargs["session_id"] if "session_id" in kwargs else kwargs["priority"]),
        )
        return await super()._run_agent_loop({**sampling_params, "seed": seed}, trajectory, **kwargs)


class SeededWorker(_Seeding, AgentLoopWorker):
    """Of the legacy trainer."""


class SeededWorkerTQ(_Seeding, AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """Of the current trainer."""


class SeededManager(AgentLoopManager):
    """Of the legacy trainer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.agent_loop_workers_class = ray.remote(SeededWorker)
        super().__init__(*args, **kwargs)


class SeededManagerTQ(AgentLoopManagerTQ):
    """Of the current trainer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(SeededWorkerTQ)

    def generate_sequences(self, prompts: Any) -> None:
        """Stock, with the order of the prompts kept for the replay buffer of this process."""
        OrderedReplayBuffer.asked_for(list(prompts["uid"]))
        super().generate_sequences(prompts)
