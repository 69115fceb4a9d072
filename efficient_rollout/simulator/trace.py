"""A rollout trace: prompt and response lengths per request, from a file or drawn; and which engine serves which."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.errors import ConfigError, InputFileError
from efficient_rollout.files import read_text

Lengths = NDArray[np.int64]
DEFAULT_PROMPT_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Trace:
    """Holds requests in the order they are submitted, all at once; shapes (num_requests,), at least 1 each."""

    prompt_tokens: Lengths
    response_tokens: Lengths

    def assigned(self, num_engines: int) -> NDArray[np.int64]:
        """Return the engine of each request: in turn, as veRL's load balancer deals a batch submitted at once.

        Raises:
            ConfigError: there are more engines than requests, or none.
        """
        if not 1 <= num_engines <= len(self.response_tokens):
            raise ConfigError(f"{num_engines} engines for {len(self.response_tokens)} requests; give 1 to as many")
        return np.arange(len(self.response_tokens), dtype=np.int64) % num_engines


def read_trace(path: Path) -> Trace:
    """Read a trace: JSON lines, or a JSON list, of `{"prompt_tokens": 90, "response_tokens": 640}`.

    `prompt_tokens` defaults to 128.

    Raises:
        InputFileError: the file is missing or an entry is malformed.
    """
    text = read_text(path, what="the trace").strip()
    try:
        entries = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    except json.JSONDecodeError as error:
        raise InputFileError(f"{path} is neither a JSON list nor JSON lines: {error}") from error
    if not entries:
        raise InputFileError(f"{path} holds no request; each needs response_tokens")
    rows = [_request(path, number, entry) for number, entry in enumerate(entries, start=1)]
    prompt, response = np.array(rows, dtype=np.int64).T
    return Trace(prompt, response)


def _request(path: Path, number: int, entry: Any) -> tuple[int, int]:
    if not isinstance(entry, dict) or not {"response_tokens"} <= set(entry) <= {"response_tokens", "prompt_tokens"}:
        raise InputFileError(f"{path}: request {number} must have response_tokens and at most prompt_tokens: {entry!r}")
    sizes = entry.get("prompt_tokens", DEFAULT_PROMPT_TOKENS), entry["response_tokens"]
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise InputFileError(f"{path}: request {number} needs integers of at least 1, got {entry!r}")
    return sizes


def draw_trace(
    lengths: str, num_requests: int, num_engines: int, seed: int, prompt_tokens: int = DEFAULT_PROMPT_TOKENS
) -> Trace:
    """Draw `num_requests` response lengths for each engine.

    They are `lognormal:MEAN,SIGMA,MAX`: the mean of the distribution in tokens before it is cut at MAX tokens, and the
    standard deviation of the log.

    Raises:
        ConfigError: `lengths` is malformed, or a number is out of range.
    """
    kind, _, argument = lengths.partition(":")
    try:
        mean, sigma, largest = (float(part) for part in argument.split(","))
    except ValueError as error:
        raise ConfigError(f"lengths must be lognormal:MEAN,SIGMA,MAX, got {lengths!r}") from error
    if kind != "lognormal" or not (mean >= 1.0 and 0.0 <= sigma <= 5.0 and 1.0 <= largest <= 2.0**24):
        raise ConfigError(
            f"lengths must be lognormal:MEAN,SIGMA,MAX with MEAN, MAX >= 1, SIGMA 0 to 5, got {lengths!r}"
        )
    if num_requests < 1 or num_engines < 1 or prompt_tokens < 1:
        raise ConfigError(f"requests ({num_requests}), engines ({num_engines}) and prompt tokens must be at least 1")
    rng = np.random.default_rng(seed)
    drawn = rng.lognormal(np.log(mean) - sigma**2 / 2.0, sigma, num_requests * num_engines)
    response = np.clip(np.rint(drawn), 1, largest).astype(np.int64)
    return Trace(np.full(len(response), prompt_tokens, dtype=np.int64), response)
