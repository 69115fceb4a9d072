"""What no file, page or message of this package may hold: values of arguments whose names say that they are secret."""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NoReturn

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
_NOTHING = ("", "None", "null", "???")
_SHORTEST_KNOWN = 8


def _value(bare: str) -> str:
    """Return a pattern of what a name is given: in quotes or brackets, or bare; nothing that was left out already."""
    return rf"""(?P<value>(?!{re.escape(LEFT_OUT)})(?:'[^']*'|"[^"]*"|\[[^\]]*\]|{bare}))"""


_ASSIGNED = re.compile(r"(?P<before>(?P<name>[\w.~+-]+)=)" + _value(r"(?:,(?=\S)|[^\s,;&)\]}])+"))
_OPTION = re.compile(r"(?P<before>(?P<name>--[\w.-]+)\s+)" + _value(r"(?!--)\S+"))
_KEYED = re.compile(
    r"""(?P<before>(?:^|[{,(\[])[ ]*(?:-[ ])?(?P<quote>['"]?)(?P<name>[\w.-]+)(?P=quote):[ ]*)"""
    + _value(r"[^\s,)\]}]+"),
    re.MULTILINE,
)
_PASSWORD = re.compile(r"(?P<before>://[^\s/@:]*:)(?P<value>[^\s/]+)(?=@)")


def is_secret(name: str) -> bool:
    """Tell whether a name, such as `--logger.wandb.key` or `HF_TOKEN`, says that its value is a secret."""
    words = [word.lower() for word in _WORDS.findall(name.rpartition(".")[2])]
    if not words or words[-1] not in _SECRET:
        return False
    before = words[-2] if len(words) > 1 else ""
    if words[-1] == "key":
        return before not in _HARMLESS_KEYS
    return not (words[-1] == "token" and before in _HARMLESS_TOKENS)


def text_without_secrets(text: str) -> str:
    """Copy a message: what a secret name is given, passwords in addresses, and secrets of this process are left out.

    What a name is given is seen as `name=V`, `--name V`, and as an entry of a mapping printed in Python, JSON or YAML.
    Secrets of this process are values of secret names among its variables and on its command line, wherever they stand.
    """
    for value in sorted(_known(), key=len, reverse=True):
        text = text.replace(value, LEFT_OUT)
    for pattern in (_ASSIGNED, _OPTION, _KEYED):
        text = pattern.sub(_told, text)
    return _PASSWORD.sub(rf"\g<before>{LEFT_OUT}", text)


def _told(match: re.Match[str]) -> str:
    is_left_out = is_secret(match["name"]) and match["value"].strip("'\"") not in _NOTHING
    return match["before"] + LEFT_OUT if is_left_out else match[0]


def _known() -> Iterator[str]:
    given = [value for name, value in os.environ.items() if is_secret(name)]
    arguments = sys.argv[1:]
    for argument, following in pairwise([*arguments, "--"]):
        name, equals, value = argument.partition("=")
        if is_secret(name):
            given += [value, value.strip("'\"")] if equals else [following] if name.startswith("--") else []
    # A short one would be found in the middle of words.
    return (value for value in given if len(value) >= _SHORTEST_KNOWN and not value.startswith("--"))


def without_secrets(tree: Any) -> Any:
    """Copy nested mappings and sequences, with the values of secret names left out, in their texts too.

    None stays None.
    """
    if isinstance(tree, Mapping):
        return {
            name: LEFT_OUT if value not in (None, "") and is_secret(str(name)) else without_secrets(value)
            for name, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [without_secrets(item) for item in tree]
    return text_without_secrets(tree) if isinstance(tree, str) else tree


def arguments_without_secrets(arguments: Sequence[str]) -> list[str]:
    """Copy a command's arguments: `--a.key V`, `--a.key=V` and `a.key=V` keep the name and lose the value."""
    kept: list[str] = []
    is_value = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if is_value and not argument.startswith("--"):
            kept.append(LEFT_OUT)
        else:
            kept.append(f"{name}={LEFT_OUT}" if equals and is_secret(name) else text_without_secrets(argument))
        is_value = argument.startswith("-") and not equals and is_secret(name)
    return kept


class DiscreetParser(argparse.ArgumentParser):
    """Says which arguments it does not know, without their secrets."""

    def error(self, message: str) -> NoReturn:
        """Do as stock does, without secrets in the message."""
        super().error(text_without_secrets(message))
