"""What a run writes of its steps: `metrics.jsonl`, one JSON object a line, and `timeline.jsonl`."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efficient_rollout.files import written_whole
from efficient_rollout.metrics.timeline import TIMELINE_FILE, StepTimelines, is_sampled

logger = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"


class StepFiles:
    """What a run's directory holds of its steps: `metrics.jsonl`, and `timeline.jsonl`.

    The timelines are those of sampled steps and of the newest one: a few lines, however long the run.

    Args:
        directory: The run's, made if absent; timelines of an earlier run there are removed.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._metrics, self._timelines = directory / FILE_NAME, directory / TIMELINE_FILE
        self._kept: list[str] = []
        self._timelines.unlink(missing_ok=True)

    def append(self, step: int, data: Mapping[str, Any]) -> None:
        """Add one record: the step's number, the Unix time, and metrics, of whichever framework's types."""
        record = {"step": step, "time": time.time()} | {key: _as_json(value) for key, value in data.items()}
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def add_timelines(self, timelines: StepTimelines) -> None:
        """Put a step in the place of the newest one, which stays where it is sampled; nothing without a timeline."""
        if not timelines.engines:
            return
        line = json.dumps(timelines.to_dict()) + "\n"
        with written_whole(self._timelines) as staged:
            staged.write_text("".join([*self._kept, line]), encoding="utf-8")
        if is_sampled(timelines.step):
            self._kept.append(line)


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
