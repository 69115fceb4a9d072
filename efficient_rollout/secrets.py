"""What no file, page or message of this package may hold: values of arguments whose names say that they are secret."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

LEFT_OUT = "(left out)"
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET = frozenset(
    {"key", "apikey", "token", "secret", "password", "passwd", "passphrase", "credential", "credentials"}
)
# Keys of a table, and tokens of a vocabulary: what stands before the last word of a name that is no secret.
_HARMLESS_KEYS = frozenset(
    {"prompt", "input", "output", "label", "image", "video", "audio", "reward", "fn", "tool", "tools"}
)
_HARMLESS_TOKENS = frozenset({"eos", "bos", "pad", "unk", "stop", "begin", "end", "special", "mask", "image", "per"})


def is_secret(name: str) -> bool:
    """Whether a name, such as `--logger.wandb.key` or `HF_TOKEN`, says that its value is a secret."""
    words = [word.lower() for word in _WORDS.findall(name.rpartition(".")[2])]
    if not words or words[-1] not in _SECRET:
        return False
    before = words[-2] if len(words) > 1 else ""
    if words[-1] == "key":
        return before not in _HARMLESS_KEYS
    return not (words[-1] == "token" and before in _HARMLESS_TOKENS)


def without_secrets(tree: Any) -> Any:
    """Copy nested mappings and sequences, with the values of secret names left out; None stays None."""
    if isinstance(tree, Mapping):
        return {
            name: LEFT_OUT if value not in (None, "") and is_secret(str(name)) else without_secrets(value)
            for name, value in tree.items()
        }
    return [without_secrets(item) for item in tree] if isinstance(tree, list | tuple) else tree


def arguments_without_secrets(arguments: Sequence[str]) -> list[str]:
    """Copy a command's arguments: `--a.key V`, `--a.key=V` and `a.key=V` keep the name and lose the value."""
    kept: list[str] = []
    is_value = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if is_value and not argument.startswith("--"):
            kept.append(LEFT_OUT)
        else:
            kept.append(f"{name}={LEFT_OUT}" if equals and is_secret(name) else argument)
        is_value = argument.startswith("-") and not equals and is_secret(name)
    return kept
