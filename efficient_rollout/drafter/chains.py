"""Chains of draft tokens of one tick: what each draft pass feeds, and what of it stands.

A pass may check tokens copied from a request's own text: what stood behind the place that reads most like its end; and
from responses that have ended, of requests with the same prompt.
"""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.controller.rule import DraftCounts

Tokens = NDArray[np.int32]

# Longer matches are told apart from these by nothing that was measured.
MOST_MATCHING_TOKENS = 16
# A text of one repeated token has as many places as tokens; the latest are looked at.
_MOST_PLACES = 256
# Copied tokens that one pass checks for a request. A pass takes longer by each.
MOST_COPIES = 7
# Up to so many chains a pass on a CPU takes its time for weights, not for rows. With eight, copies cost what they save
# (docs/benchmarks.md).
FEW_CHAINS = 3
# 64 MiB of int32: a training epoch of many thousand responses, or of fewer long ones.
_MOST_TOKENS = 16 << 20
# Read at every lookup of a request.
_MOST_TOKENS_OF_A_PROMPT = 32 << 10


@dataclass(frozen=True, slots=True)
class Fed:
    """Holds the rows of one draft pass: those of each of some requests, ascending.

    Attributes:
        tokens: To feed, of each request: the newest of its chain, and copies behind it.
        places: The place in each request's chain that its first row draws.
    """

    requests: list[int]
    tokens: list[list[int]]
    places: list[int]

    @property
    def num_rows(self) -> list[int]:
        """Return the rows of each request."""
        return [len(tokens) for tokens in self.tokens]


class Chains:
    """Grows a chain for each request, until the batch has about as many draft tokens as were asked for.

    A pass feeds a chain's newest token and copies behind it, and draws at each. Copies that equal the draws before
    them stand, and so does one draw behind them: a chain holds the drafter's own draws, whatever they were found by.

    Args:
        newest: Of each request, the newest sampled token.
        text_of: Returns a request's text, int32 [tokens], the newest sampled token last; asked once, where needed.
        most: Draft tokens that each request can use.
        num_tokens: Draft tokens to make, of all requests together.
        max_copies: Copied tokens that a pass checks for a request; 0 looks nothing up.
        few_chains: Nothing is looked up where more chains grow.

    Attributes:
        drafts: The draft tokens of each request.
        counts: What passes did.
    """

    def __init__(
        self,
        newest: Sequence[int],
        text_of: Callable[[int], Tokens],
        most: Sequence[int],
        num_tokens: int,
        *,
        max_copies: int,
        few_chains: int = FEW_CHAINS,
    ) -> None:
        self._newest, self._most, self._text_of = newest, most, cache(text_of)
        self.drafts: list[list[int]] = [[] for _, _ in zip(newest, most, strict=True)]
        self.counts = DraftCounts()
        self._num_left, self._max_copies, self._few_chains = num_tokens, max_copies, few_chains

    def feed(self) -> Fed | None:
        """Return the next pass's rows, no more of them than tokens are left to draft; None at the end.

        A pass for a few of many chains takes nearly as long as one for all: what copies left over is not worth it.
        """
        lengths = list(map(len, self.drafts))
        growing = [number for number, most in enumerate(self._most) if lengths[number] < most]
        if not growing or 2 * self._num_left < len(growing):
            return None
        if len(growing) > self._num_left:
            # The shortest chains gain most by another token.
            growing = sorted(sorted(growing, key=lengths.__getitem__)[: self._num_left])
        copies = self._look_up(growing) if self._max_copies and len(growing) <= self._few_chains else {}
        ends = (self.drafts[number][-1] if lengths[number] else self._newest[number] for number in growing)
        rows = [[end, *copies.get(number, ())] for number, end in zip(growing, ends, strict=True)]
        return Fed(growing, rows, [lengths[number] for number in growing])

    def _look_up(self, growing: list[int]) -> dict[int, list[int]]:
        """Choose each chain's copies: no more than match, and where there is no room for all, of the longest match.

        A copy costs a row, and saves a pass where one chain grows. The n-th copy behind a match of n tokens stands
        about once in ten (docs/lookup.md), and a row is a tenth of such a pass.
        """
        num_spare = self._num_left - len(growing)
        found, chosen = [], {}
        for number in growing:
            drafts = self.drafts[number]
            most = min(self._max_copies, self._most[number] - len(drafts) - 1, num_spare)
            text = np.append(self._text_of(number), np.array(drafts, dtype=np.int32))
            copies, length = find_copies(text, most)
            found.append((length, number, copies[:length]))
        for _, number, copies in sorted(found, key=lambda item: -item[0]):
            chosen[number] = copies[:num_spare].tolist()
            num_spare -= len(chosen[number])
        return chosen

    def keep(self, fed: Fed, drawn: list[int]) -> None:
        """Append what stands of a pass, by the token drawn at each of its rows."""
        first = 0
        self.counts.num_passes += 1
        self.counts.num_chains_fed += len(fed.requests)
        for number, tokens in zip(fed.requests, fed.tokens, strict=True):
            draws = drawn[first : first + len(tokens)]
            first += len(tokens)
            num_kept = 0
            while num_kept < len(tokens) - 1 and tokens[num_kept + 1] == draws[num_kept]:
                num_kept += 1
            self.drafts[number].extend(draws[: num_kept + 1])
            self._num_left -= num_kept + 1
            self.counts.num_copies += len(tokens) - 1
            self.counts.num_copies_kept += num_kept


def find_copies(text: Tokens, most: int) -> tuple[Tokens, int]:
    """Find up to `most` tokens that came after the last place where a text, int32 [tokens], reads as its end does.

    Of several places, the one with the longest match counts, and of those the latest. Where the copied part reaches
    the end of the text, it goes on with itself, as text that repeats would.

    Returns:
        int32 [most], or [0] where the last token occurs nowhere else; and the number of tokens that match.
    """
    newest = len(text) - 1
    places = np.flatnonzero(text[:newest] == text[newest])[-_MOST_PLACES:]
    if most < 1 or not len(places):
        return text[:0], 0
    length = 1
    while length < min(MOST_MATCHING_TOKENS, newest):
        longer = places[places >= length]
        longer = longer[text[longer - length] == text[newest - length]]
        if not len(longer):
            break
        places, length = longer, length + 1
    behind = text[places[-1] + 1 : places[-1] + 1 + most]
    return np.resize(behind, most), length


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
        """Keep a response, unless it is empty, or longer than all those of a prompt may be."""
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
