"""Responses that have ended, kept for the requests that get their prompt after or beside them."""

import hashlib
from collections import OrderedDict, deque

import numpy as np

from efficient_rollout.drafter.chains import MOST_MATCHING_TOKENS, Tokens

# 64 MiB of int32: a training epoch of many thousand responses, or of fewer long ones.
_MOST_TOKENS = 16 << 20
# Read at every lookup of a request.
_MOST_TOKENS_OF_A_PROMPT = 32 << 10


class EndedResponses:
    """Keeps responses by their prompt: of a group's requests that have ended, and of the epochs before.

    Whose weights they were sampled with makes no difference: a copy that the drafter would not draw does not stand.

    Args:
        most_tokens: In all. Prompts that nothing was added to for longest are forgotten first.
        most_tokens_of_a_prompt: Its oldest responses are forgotten first.
    """

    def __init__(
        self, most_tokens: int = _MOST_TOKENS, most_tokens_of_a_prompt: int = _MOST_TOKENS_OF_A_PROMPT
    ) -> None:
        self._most_tokens, self._most_of_a_prompt = most_tokens, most_tokens_of_a_prompt
        self._by_prompt: OrderedDict[bytes, deque[Tokens]] = OrderedDict()
        self.num_tokens = 0

    def add(self, prompt: Tokens, response: Tokens) -> None:
        """Keep a response.

        Args:
            prompt: int32 [tokens].
            response: int32 [tokens]; one that is longer than a prompt may have is left out, as is an empty one.
        """
        # With the prompt's end, so that a response's first tokens are found too.
        text = np.concatenate([prompt[-MOST_MATCHING_TOKENS:], response])
        if not len(response) or len(text) > min(self._most_of_a_prompt, self._most_tokens):
            return
        key = _key(prompt)
        texts = self._by_prompt.setdefault(key, deque())
        self._by_prompt.move_to_end(key)
        texts.append(text)
        self.num_tokens += len(text)
        while sum(map(len, texts)) > self._most_of_a_prompt:
            self.num_tokens -= len(texts.popleft())
        while self.num_tokens > self._most_tokens:
            _, forgotten = self._by_prompt.popitem(last=False)
            self.num_tokens -= sum(map(len, forgotten))

    def texts(self, prompt: Tokens) -> list[Tokens]:
        """Return what is kept for a prompt, the oldest response first."""
        return list(self._by_prompt.get(_key(prompt), ()))


def _key(prompt: Tokens) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(prompt).tobytes(), digest_size=16).digest()
