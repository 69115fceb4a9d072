"""`metrics.jsonl` of a run: one JSON object a line, for each step that was logged."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"


def append_step(path: Path, step: int, data: Mapping[str, Any]) -> None:
    """Append one step's record: its number, the Unix time, and its metrics, of whichever framework's types."""
    record = {"step": step, "time": time.time()} | {key: _as_json(value) for key, value in data.items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def set_aside(path: Path) -> None:
    """Keep an earlier run's file under another name: one file, one run."""
    if path.exists():
        number = 1
        while (kept := path.with_suffix(f".{number}.jsonl")).exists():
            number += 1
        path.rename(kept)
        logger.info("kept the metrics of an earlier run as %s", kept)


def _as_json(value: Any) -> Any:
    """A number as a number; anything a logger might render otherwise as text."""
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "size", 1) == 1:
        return item()
    return str(value)
