"""A request's own word on drafting: the longest draft that is wanted for it, in its `extra_args`."""

from collections.abc import Mapping
from typing import Any

from efficient_rollout.config import CONFIG_KEY
from efficient_rollout.errors import ConfigError

_LONGEST = "max_draft_tokens"
# What the word is over HTTP, in `vllm_xargs`: vLLM lets numbers and texts through there, and no mappings.
FLAT_KEY = f"{CONFIG_KEY}_{_LONGEST}"


def with_word(extra_args: Mapping[str, Any] | None, longest: int) -> dict[str, Any]:
    """Return a request's `extra_args` with a longest draft; a word that it has already stays."""
    given = dict(extra_args or {})
    return given if CONFIG_KEY in given or FLAT_KEY in given else {**given, CONFIG_KEY: {_LONGEST: longest}}


def check_word(extra_args: Mapping[str, Any] | None, most: int) -> None:
    """Check the word of a request that is about to be admitted.

    Raises:
        ConfigError: It has another key than the one there is, or no whole number from 0 to `most`, the engine's own.
    """
    given = extra_args or {}
    if CONFIG_KEY not in given and FLAT_KEY not in given:
        return
    if CONFIG_KEY in given and FLAT_KEY in given:
        raise ConfigError(f"a request has both {CONFIG_KEY} and {FLAT_KEY} in its extra_args: leave one of them out")
    where, longest = FLAT_KEY, given.get(FLAT_KEY)
    if CONFIG_KEY in given:
        where, word = f"{CONFIG_KEY}.{_LONGEST}", given[CONFIG_KEY]
        if not isinstance(word, Mapping) or set(word) != {_LONGEST}:
            raise ConfigError(f"extra_args[{CONFIG_KEY!r}] of a request is {{{_LONGEST!r}: N}} alone, got {word!r}")
        longest = word[_LONGEST]
    # True is an int to Python, and a mistake here.
    if type(longest) is not int or not 0 <= longest <= most:
        raise ConfigError(
            f"{where} of a request must be a whole number from 0 (no drafts) to {most}, this engine's "
            f"controller.max_draft_tokens, got {longest!r}"
        )


def longest_draft(extra_args: Mapping[str, Any] | None, most: int) -> int:
    """Return the most draft tokens that are wanted for a request, no more than `most`.

    Whoever admits a request has checked its word. A front end that is not vLLM's Python one checks nothing: what is no
    word is then ignored, because this is asked where a fault would end the engine.
    """
    if not extra_args:
        return most
    word = extra_args.get(CONFIG_KEY)
    longest = word.get(_LONGEST) if isinstance(word, Mapping) else extra_args.get(FLAT_KEY)
    return min(max(0, longest), most) if isinstance(longest, int) else most
