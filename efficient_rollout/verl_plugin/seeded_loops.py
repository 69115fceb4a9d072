"""Agent loops that give every request a seed of its own, and a validation's requests their longest draft.

In the place of veRL's through its own option, `rollout.agent.agent_loop_manager_class`, where the settings say so.

A request's seed is that of its place in the run: the step, the call for prompts in it, the row of the prompt there, and
which of the prompt's samples it is. Not that of the prompt's text: a data set may hold a prompt twice, and a step may
ask for one again.
"""

import contextvars
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import ray
from omegaconf import DictConfig
from verl.experimental.agent_loop.agent_loop import AgentLoopManager, AgentLoopWorker
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils import tensordict_utils
from verl.utils.ray_utils import auto_await

from efficient_rollout.engine.request_word import with_word
from efficient_rollout.sampling.noise import TrajectorySeeds, request_seed
from efficient_rollout.verl_plugin.replay_buffer import OrderedReplayBuffer
from efficient_rollout.verl_plugin.settings import job_settings

# Of every row on its way from the manager to a worker, by this name.
PLACE = "rollout_place"
_TRAJECTORY: contextvars.ContextVar[TrajectorySeeds] = contextvars.ContextVar("trajectory")


class _Asking:
    """Stands before an agent loop worker among a class's bases, and adds to its requests what the settings say."""

    config: DictConfig
    llm_client: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = job_settings(self.config)
        if self._settings.rollout_seed is not None:
            self.llm_client.generate = _seeded(self.llm_client.generate)

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> Any:
        """Do as stock does, with requests seeded by the trajectory's place in the run; veRL runs each in a task."""
        seed, longest = self._settings.rollout_seed, self._settings.controller.validation_max_draft_tokens
        if trajectory["validate"] and longest is not None:
            word = with_word(sampling_params.get("extra_args"), longest)
            sampling_params = {**sampling_params, "extra_args": word}
        if seed is None:
            return await super()._run_agent_loop(sampling_params, trajectory, **kwargs)
        step = int(kwargs.get("global_steps", trajectory["step"]))
        # The newer trainer makes a prompt's samples here, the older one has a row for each.
        sample = int(kwargs.get("session_id", 0))
        phase = "validation" if trajectory["validate"] else "training"
        base = request_seed(seed, phase, step, *map(int, kwargs.pop(PLACE)), sample)
        _TRAJECTORY.set(TrajectorySeeds(base))
        return await super()._run_agent_loop({**sampling_params, "seed": base}, trajectory, **kwargs)


def _seeded(stock: Any) -> Any:
    """Return a client's `generate` that seeds each request as one of the trajectory that makes it."""

    async def generate(
        request_id: Any, *, prompt_ids: Sequence[int], sampling_params: dict[str, Any], **kwargs: Any
    ) -> Any:
        trajectory = _TRAJECTORY.get(None)
        # A loop may ask from a thread of its own, which knows no trajectory; what it was given has the seed then.
        if trajectory is not None:
            seed = trajectory.next_seed(prompt_ids, sampling_params.get("seed"))
            sampling_params = {**sampling_params, "seed": seed}
        return await stock(request_id, prompt_ids=prompt_ids, sampling_params=sampling_params, **kwargs)

    return generate


class SeededWorker(_Asking, AgentLoopWorker):
    """Is the worker of the legacy trainer."""


class SeededWorkerTQ(_Asking, AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """Is the worker of the current trainer."""


class _Placing:
    """Stands before a manager among a class's bases: a run's calls are counted, however many workers share one."""

    config: DictConfig
    worker_class: ClassVar[type]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(self.worker_class)
        self._is_seeded = job_settings(self.config).rollout_seed is not None
        # The newest step of training and of validation, and the calls in it so far.
        self._calls: dict[bool, tuple[int, int]] = {}

    def _next_places(self, step: int, num_rows: int, *, validate: bool) -> list[tuple[int, int]]:
        """Return the place of each row of a call that is made now: which call of the step, and which row of it."""
        newest, num_calls = self._calls.get(validate, (step, 0))
        call = num_calls if newest == step else 0
        self._calls[validate] = (step, call + 1)
        return [(call, row) for row in range(num_rows)]


class SeededManager(_Placing, AgentLoopManager):
    """Is the manager of the legacy trainer."""

    worker_class = SeededWorker

    @auto_await
    async def generate_sequences(self, prompts: Any) -> Any:
        """Do as stock does, with rows that know their places."""
        if self._is_seeded:
            step, validate = int(prompts.meta_info.get("global_steps", -1)), prompts.meta_info.get("validate", False)
            places = self._next_places(step, len(prompts), validate=bool(validate))
            prompts.non_tensor_batch[PLACE] = np.array(places, dtype=np.int64)
        return await super().generate_sequences(prompts)


class SeededManagerTQ(_Placing, AgentLoopManagerTQ):
    """Is the manager of the current trainer."""

    worker_class = SeededWorkerTQ

    def generate_sequences(self, prompts: Any) -> None:
        """Do as stock does, with rows that know their places; the replay buffer here is told the prompts' order."""
        if self._is_seeded:
            OrderedReplayBuffer.asked_for(list(prompts["uid"]))
            validate = bool(tensordict_utils.get(prompts, "validate", False))
            step = int(tensordict_utils.get(prompts, "global_steps"))
            places = self._next_places(step, len(prompts), validate=validate)
            tensordict_utils.assign_non_tensor_stack(prompts, PLACE, places)
        super().generate_sequences(prompts)
