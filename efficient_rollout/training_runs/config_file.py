"""A run's resolved configuration. Alone in needing PyYAML."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from efficient_rollout.errors import InputFileError
from efficient_rollout.files import read_text


class _LoaderWithoutDates(yaml.SafeLoader):
    """Loads what looks like a date as text.

    Other packages change what PyYAML makes of one, in every loader of a process.
    """


_LoaderWithoutDates.yaml_implicit_resolvers = {
    start: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_config(path: Path) -> Mapping[str, Any]:
    """Read it; every leaf is a JSON type.

    Raises:
        InputFileError: It is no YAML, or holds no keys.
    """
    try:
        config = yaml.load(read_text(path, what="the run's configuration"), _LoaderWithoutDates)
    except yaml.YAMLError as fault:
        raise InputFileError(f"{path} is not YAML ({str(fault).splitlines()[0]}): it is not a run's") from fault
    if not isinstance(config, dict):
        raise InputFileError(f"{path} holds no keys: it is not a run's configuration")
    return config
