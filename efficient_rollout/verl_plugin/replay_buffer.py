"""veRL's replay buffer, polled more often: a step on a CPU can be shorter than veRL's two seconds."""

from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

POLL_INTERVAL_SECONDS = 0.05


class FastPollingReplayBuffer(ReplayBuffer):
    """For `trainer.v1.sampler.custom_sampler`, in the synchronous trainer without group filtering."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"poll_interval": POLL_INTERVAL_SECONDS, **kwargs})
