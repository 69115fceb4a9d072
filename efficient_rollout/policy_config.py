"""The one reader of a policy's `config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_rollout.errors import InputFileError
from efficient_rollout.files import read_json

_FILE_NAME = "config.json"
_REMEDY = "give a policy's directory"


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """What a policy's `config.json` says.

    Attributes:
        path: The file, for messages.
        values: Its entries.
    """

    path: Path
    values: Mapping[str, Any]

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer.

        Args:
            name: Of the entry.
            default: Where there is no such entry, or it is null; None: there must be one.

        Raises:
            InputFileError: It is missing, or something else.
        """
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputFileError(
                f"{self.path}: {name} must be a positive integer, got {value!r}; only dense decoders are known"
            )
        return value

    @property
    def max_positions(self) -> int:
        """Tokens the policy can hold; a number beyond every context where it does not say."""
        return self.size("max_position_embeddings", default=1 << 30)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a response; none where the policy names none."""
        eos = self.values.get("eos_token_id")
        if eos is None:
            return ()
        return tuple(eos) if isinstance(eos, list) else (int(eos),)


def read_policy_config(policy: Path | str) -> PolicyConfig:
    """Read a policy's configuration.

    Args:
        policy: Its directory, or its `config.json`.

    Raises:
        InputFileError: The file is missing, or is no JSON object.
    """
    path = Path(policy).expanduser()
    if path.is_dir() or path.suffix != ".json":
        path /= _FILE_NAME
    values = read_json(path, what="the policy's configuration", remedy=_REMEDY)
    if not isinstance(values, dict):
        raise InputFileError(f"{path} must hold a JSON object; {_REMEDY}")
    return PolicyConfig(path, values)
