"""A seed for each request of a training job, of which no two are equal."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence

from efficient_rollout.sampling.noise import request_seed


def tokens_digest(token_ids: Sequence[int]) -> str:
    """Return a name of a sequence of tokens that no other sequence has."""
    return hashlib.sha256(array("q", token_ids).tobytes()).hexdigest()


class TrajectorySeeds:
    """Makes seeds for the requests of one trajectory: one, or one for each turn or branch.

    A request is told from the trajectory's others by what is asked, and where the same is asked again, by how often it
    was: not by when, so that branches that run side by side have their seeds whichever comes first.

    Args:
        base: Of the trajectory; no other trajectory of the job has it.
    """

    def __init__(self, base: int) -> None:
        self.base = base
        self._asked: Counter[tuple[str, int | None]] = Counter()

    def next_seed(self, prompt_token_ids: Sequence[int], own: int | None) -> int:
        """Return the seed of a request that is made now: 63 bits.

        Args:
            prompt_token_ids: What is asked.
            own: The seed that whoever makes the request has chosen; it chooses among noises that are all this
                trajectory's own.
        """
        asked = (tokens_digest(prompt_token_ids), own)
        self._asked[asked] += 1
        return request_seed(self.base, asked[0], "none" if own is None else own, self._asked[asked])
