"""veRL's replay buffer, polled more often: a step on a CPU can be shorter than veRL's two seconds."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer


class FastPollingReplayBuffer(ReplayBuffer):
    """Serves `trainer.v1.sampler.custom_sampler`, in the synchronous trainer without group filtering."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"poll_interval": 0.05, **kwargs})


class OrderedReplayBuffer(FastPollingReplayBuffer):
    """Gives batches in the order of their prompts; veRL's come in the order in which responses were finished.

    Attributes:
        places: Of prompts that were asked for and not handed out, by veRL's name for each, in this process.
    """

    places: ClassVar[dict[str, int]] = {}
    _next_places: ClassVar[Iterator[int]] = itertools.count()

    @classmethod
    def asked_for(cls, uids: Sequence[str]) -> None:
        """Note the prompts that go out to be answered, in this order."""
        cls.places.update(zip(uids, cls._next_places, strict=False))

    def _materialize_batch(self, partition_id: str, selected_prompt_uids: list[str], snapshot: dict[str, Any]) -> Any:
        """Do as stock does, with an ordered snapshot of `{uid}_{session}_{index}` keys."""
        places = {uid: self.places.pop(uid) for uid in selected_prompt_uids}

        def place(key: str) -> tuple[int, int, int]:
            uid, session, index = key.split("_")
            return places[uid], int(session), int(index)

        ordered = sorted((key for key in snapshot if key.split("_")[0] in places), key=place)
        return super()._materialize_batch(partition_id, selected_prompt_uids, {key: snapshot[key] for key in ordered})
