"""The work of a rollout: prompts, and how long each response is."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from efficient_rollout.errors import ConfigError, InputFileError
from efficient_rollout.files import read_text
from efficient_rollout.policy_config import PolicyConfig
from efficient_rollout.simulator.trace import Trace

_FIRST_ORDINARY_TOKEN = 3  # below it are the usual special tokens
Prompt = tuple[int, ...]


class Request(NamedTuple):
    """Holds one request of the trace."""

    prompt_token_ids: Prompt  # what the policy is given
    max_tokens: int  # what it emits, or, with natural ends, at most emits

    @property
    def num_tokens(self) -> int:
        """Return the tokens of prompt and response together, at most."""
        return len(self.prompt_token_ids) + self.max_tokens


@dataclass(frozen=True, slots=True)
class RandomPrompts:
    """Draws tokens evenly, as many as the trace says. A policy's acceptance on them says little."""

    vocab_size: int

    def draw(self, prompt_tokens: list[int], seed: int) -> list[Prompt]:
        """Return a prompt of each length."""
        rng = np.random.default_rng(seed)
        return [tuple(rng.integers(_FIRST_ORDINARY_TOKEN, self.vocab_size, size).tolist()) for size in prompt_tokens]


@dataclass(frozen=True, slots=True)
class FixedPrompts:
    """Holds prompts in hand, shuffled by the seed and used again once all were used."""

    prompts: tuple[Prompt, ...]

    def draw(self, prompt_tokens: list[int], seed: int) -> list[Prompt]:
        """Return one per entry, whatever the lengths."""
        order = np.random.default_rng(seed).permutation(len(self.prompts))
        return [self.prompts[order[i % len(order)]] for i in range(len(prompt_tokens))]


@dataclass(frozen=True, slots=True)
class TaskPrompts:
    """Asks questions of the embedded task, new ones for each seed."""

    size: str  # of the embedded policy, which sets the difficulty
    model: str  # its directory, for the tokenizer
    min_response_tokens: int = 0  # only questions whose worked answers are at least this long

    def draw(self, prompt_tokens: list[int], seed: int) -> list[Prompt]:
        """Return one per entry, whatever the lengths."""
        from efficient_rollout.tasks import word_problems
        from efficient_rollout.tasks.arithmetic import generate
        from efficient_rollout.tasks.smollm2 import SIZE as SMOLLM2
        from efficient_rollout.tasks.training_plans import level_of

        if self.size == SMOLLM2:
            if self.min_response_tokens:
                raise ConfigError(f"size {SMOLLM2} has no worked answers of a length that can be asked for")
            questions = word_problems.take("validation", seed, len(prompt_tokens))
            return _encode(self.model, [question.messages for question in questions])
        level, least = level_of(self.size), self.min_response_tokens
        if level.max_response_tokens < least:
            raise ConfigError(
                f"no worked answer of size {self.size} has {least} tokens, they end at {level.max_response_tokens}; "
                "ask for shorter contexts"
            )
        long_enough = (p.question for p in generate(level, "validation", seed) if p.num_response_tokens >= least)
        asked = itertools.islice(long_enough, len(prompt_tokens))
        return _encode(self.model, [[{"role": "user", "content": question}] for question in asked])


PromptSource = RandomPrompts | FixedPrompts | TaskPrompts


def read_prompts(path: Path, model: str) -> FixedPrompts:
    """Read prompts from JSON lines of `{"prompt_token_ids": [...]}` or `{"prompt": TEXT_OR_MESSAGES}`.

    Raises:
        InputFileError: The file is missing, empty, or a line is malformed.
    """
    lines = [line for line in read_text(path, what="the prompts").splitlines() if line.strip()]
    prompts: list[Prompt] = []
    texts: list[Any] = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if "prompt_token_ids" in entry:
                prompts.append(tuple(int(token) for token in entry["prompt_token_ids"]))
            else:
                texts.append(entry["prompt"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputFileError(f"{path}:{number} needs prompt_token_ids, or prompt: {error!r}") from error
    prompts += _encode(model, texts) if texts else []
    if not prompts or not all(prompts):
        raise InputFileError(f"{path} holds no prompt, or an empty one")
    return FixedPrompts(tuple(prompts))


def _encode(model: str, prompts: Sequence[str | Sequence[Mapping[str, str]]]) -> list[Prompt]:
    """Return token ids: of texts as they are, of messages through the chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = []
    for prompt in prompts:
        is_text = isinstance(prompt, str)
        text = prompt if is_text else tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        encoded.append(tuple(tokenizer.encode(text, add_special_tokens=is_text)))
    return encoded


def requests_of(trace: Trace, source: PromptSource, seed: int, max_tokens: int | None = None) -> list[Request]:
    """Return the trace's requests, with prompts, and with `max_tokens` instead of the trace's response lengths."""
    prompts, lengths = source.draw(trace.prompt_tokens.tolist(), seed), trace.response_tokens.tolist()
    return [Request(p, max_tokens or length) for p, length in zip(prompts, lengths, strict=True)]


def shortened(trace: Trace, num_requests: int) -> Trace:
    """Return the first requests of a trace.

    Raises:
        ConfigError: It has fewer, or none are asked for.
    """
    if not 1 <= num_requests <= len(trace.response_tokens):
        raise ConfigError(f"--requests is {num_requests}, the trace has {len(trace.response_tokens)}")
    return Trace(trace.prompt_tokens[:num_requests], trace.response_tokens[:num_requests])


def eos_token_ids(config: PolicyConfig) -> tuple[int, ...]:
    """Return the tokens that end a response.

    Raises:
        ConfigError: The policy has none.
    """
    if not config.eos_token_ids:
        raise ConfigError("natural ends of responses need a policy whose config.json has an eos_token_id")
    return config.eos_token_ids
