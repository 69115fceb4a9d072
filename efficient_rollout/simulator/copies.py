"""What copied tokens save: real texts decoded tick by tick under a latency model, with copies and without."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from efficient_rollout.cost_model.latency import LatencyModel
from efficient_rollout.drafter.chains import MOST_COPIES, Chains, Tokens
from efficient_rollout.errors import InputFileError
from efficient_rollout.files import read_text

# What a request's copies come from: nothing; its own text; that, and the other responses to its prompt, as at the end
# of a rollout, or of an epoch before.
Source = Literal["off", "own", "group"]
SOURCES: tuple[Source, ...] = ("off", "own", "group")
_KEYS = {"set": str, "prompt_token_ids": list, "response_token_ids": list}


@dataclass(frozen=True, slots=True)
class Text:
    """Holds one response: int32 [tokens] of prompt and response, and how many are the prompt's, at least 1."""

    tokens: Tokens
    num_prompt_tokens: int


@dataclass(slots=True)
class Decoded:
    """Sums up a decode; `plain_seconds` are of as many ticks of plain decoding as the same tokens take."""

    num_tokens: int = 0
    seconds: float = 0.0
    plain_seconds: float = 0.0
    num_ticks: int = 0
    num_draft_passes: int = 0
    num_copies_kept: int = 0

    @property
    def speedup(self) -> float:
        """Return how many times as fast as plain decoding it was."""
        return self.plain_seconds / self.seconds


def read_texts(path: Path) -> dict[str, list[Text]]:
    """Read responses by their set, from JSON lines of `set`, `prompt_token_ids` and `response_token_ids`.

    Raises:
        InputFileError: The file is missing, or a line is not such an object.
    """
    texts: dict[str, list[Text]] = {}
    for number, line in enumerate(read_text(path, what="the texts").splitlines(), start=1):
        try:
            row = json.loads(line)
            if not all(isinstance(row[key], kind) for key, kind in _KEYS.items()) or not row["prompt_token_ids"]:
                raise ValueError("a value has another type, or the prompt is empty")
            prompt, response = (np.array(row[key], dtype=np.int32) for key in list(_KEYS)[1:])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputFileError(
                f'{path}:{number} is not a response: {error}; a line is {{"set": NAME, "prompt_token_ids": [...], '
                f'"response_token_ids": [...]}}'
            ) from error
        texts.setdefault(row["set"], []).append(Text(np.concatenate([prompt, response]), len(prompt)))
    if not texts:
        raise InputFileError(f"{path} holds no response")
    return texts


@dataclass(slots=True)
class CopySimulator:
    """Decodes responses, so many at a time, with chains of the drafter's draws.

    A draw is the policy's own with probability `acceptance`, each for itself; one that is not is a token of no text. A
    draft pass of n rows takes as long as one of n requests, each with `context_tokens`. One request may have
    `max_draft_tokens` in a tick, where its copies stand more often than others'.
    """

    model: LatencyModel
    context_tokens: float
    acceptance: float
    max_draft_tokens: int
    seed: int = 0
    _draft_seconds: dict[int, float] = field(default_factory=dict)

    def decode(self, texts: Sequence[Text], batch: int, num_draft_tokens: int, source: Source) -> Decoded:
        """Decode every response once, `batch` at a time: one that ends makes room for the next.

        What is left with fewer at the end is not counted. Draft tokens are per request and tick, on average.
        """
        plain, _, verify = self.model.pass_seconds(num_draft_tokens, batch, np.array([self.context_tokens]))
        done = Decoded()
        queue = (_Running(self, texts, number) for number in range(len(texts)))
        running = list(islice(queue, batch))
        while len(running) == batch:
            texts_now = [request.text(source) for request in running]
            chains = Chains(
                [int(text[-1]) for text in texts_now], texts_now.__getitem__,
                [self.max_draft_tokens] * batch, num_draft_tokens * batch,
                max_copies=0 if source == "off" else MOST_COPIES, few_chains=batch,
            )  # fmt: skip
            while (fed := chains.feed()) is not None:
                drawn = [
                    running[request].draw(place + row)
                    for request, tokens, place in zip(fed.requests, fed.tokens, fed.places, strict=True)
                    for row in range(len(tokens))
                ]
                chains.keep(fed, drawn)
                done.seconds += self._draft(sum(fed.num_rows))
            emitted = sum(request.verify(drafts) for request, drafts in zip(running, chains.drafts, strict=True))
            done.seconds += float(verify[-1, 0])
            done.num_tokens += emitted
            done.plain_seconds += float(plain[0]) * emitted / batch
            done.num_ticks += 1
            done.num_draft_passes += chains.counts.num_passes
            done.num_copies_kept += chains.counts.num_copies_kept
            running = [request for request in running if not request.is_done]
            running += islice(queue, batch - len(running))
        return done

    def _draft(self, num_rows: int) -> float:
        if num_rows not in self._draft_seconds:
            draft = self.model.pass_seconds(1, num_rows, np.array([self.context_tokens]))[1]
            self._draft_seconds[num_rows] = float(draft[0, 0])
        return self._draft_seconds[num_rows]


class _Running:
    def __init__(self, simulator: CopySimulator, texts: Sequence[Text], number: int) -> None:
        text = texts[number]
        # The first token of a response comes with its prompt.
        self._tokens, self._done = text.tokens, text.num_prompt_tokens + 1
        prompt = text.tokens[: text.num_prompt_tokens]
        self._others = [
            other.tokens
            for index, other in enumerate(texts)
            if index != number and np.array_equal(other.tokens[: other.num_prompt_tokens], prompt)
        ]
        random = np.random.default_rng([simulator.seed, number])
        self._is_right = random.random(len(text.tokens)) < simulator.acceptance

    @property
    def is_done(self) -> bool:
        return self._done >= len(self._tokens)

    def text(self, source: Source) -> Tokens:
        own = self._tokens[: self._done]
        return np.concatenate([*self._others, own]) if source == "group" else own

    def draw(self, place: int) -> int:
        at = self._done + place
        return int(self._tokens[at]) if at < len(self._tokens) and self._is_right[at] else -1 - at

    def verify(self, drafts: list[int]) -> int:
        """Return the tokens that the request gains."""
        rest = self._tokens[self._done :]
        num_stood = 0
        while num_stood < min(len(drafts), len(rest)) and drafts[num_stood] == rest[num_stood]:
            num_stood += 1
        gained = min(num_stood + 1, len(rest))
        self._done += gained
        return gained


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """Says what the best draft length of those tried gives, of one set, batch and source of copies.

    `over_off` is the speed over drafting without copies, at its own best length; the last two are of a verify pass and
    all its requests.
    """

    set: str
    batch: int
    source: Source
    num_draft_tokens: int
    speedup: float
    over_off: float
    draft_passes_per_tick: float
    copies_kept_per_tick: float


def compare_sources(
    texts: dict[str, list[Text]], simulator: CopySimulator, batches: Sequence[int], lengths: Sequence[int]
) -> list[SourceRow]:
    """Decode every set with every source, at each batch, with the draft length that is best for it."""
    rows: list[SourceRow] = []
    for name, responses in texts.items():
        for batch in (batch for batch in batches if batch <= len(responses)):
            alone = 0.0
            for source in SOURCES:
                tried = {k: simulator.decode(responses, batch, k, source) for k in lengths}
                k, best = max(tried.items(), key=lambda item: item[1].speedup)
                alone = alone or best.speedup
                rows.append(
                    SourceRow(
                        set=name, batch=batch, source=source, num_draft_tokens=k, speedup=best.speedup,
                        over_off=best.speedup / alone, draft_passes_per_tick=best.num_draft_passes / best.num_ticks,
                        copies_kept_per_tick=best.num_copies_kept / best.num_ticks,
                    )
                )  # fmt: skip
    return rows
