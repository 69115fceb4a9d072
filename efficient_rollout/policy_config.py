"""The one reader of a policy's `config.json`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_rollout.errors import InputFileError
from efficient_rollout.files import read_json

_FILE_NAME = "config.json"
_REMEDY = "give a policy's directory, or its name on the Hugging Face Hub"
# Of the Hub: an owner and a name.
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Holds what a policy's `config.json` says, and where it is, for messages."""

    path: Path
    values: Mapping[str, Any]

    def size(self, name: str, default: int | None = None) -> int:
        """Return a positive integer.

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
        """Return the tokens the policy can hold; a number beyond every context where it does not say."""
        return self.size("max_position_embeddings", default=1 << 30)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Return the tokens that end a response; none where the policy names none."""
        eos = self.values.get("eos_token_id")
        if eos is None:
            return ()
        return tuple(eos) if isinstance(eos, list) else (int(eos),)


def find_policy_config(policy: Path | str) -> Path:
    """Return where a policy's `config.json` is; that of one on the Hub in the Hub's cache, fetched if need be.

    Args:
        policy: Its directory, its `config.json`, or its name on the Hugging Face Hub.

    Raises:
        InputFileError: It looks like a name on the Hub, and nothing can be had under it.
    """
    path = Path(policy).expanduser()
    if not path.exists() and _HUB_NAME.fullmatch(str(policy)) and path.suffix != ".json":
        return _from_hub(str(policy))
    return path / _FILE_NAME if path.is_dir() or path.suffix != ".json" else path


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, _FILE_NAME))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputFileError(
            f"no policy at {name}: there is no such directory here, and as a name on the Hugging Face Hub it cannot be "
            f"read ({' '.join(str(error).split())})"
        ) from error


def read_policy_config(policy: Path | str) -> PolicyConfig:
    """Read a policy's configuration, found as by `find_policy_config`.

    Raises:
        InputFileError: The file is missing, or is no JSON object.
    """
    path = find_policy_config(policy)
    values = read_json(path, what="the policy's configuration", remedy=_REMEDY)
    if not isinstance(values, dict):
        raise InputFileError(f"{path} must hold a JSON object; {_REMEDY}")
    return PolicyConfig(path, values)
