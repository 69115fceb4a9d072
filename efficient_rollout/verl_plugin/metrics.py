"""Every step's engine statistics, into veRL's own loggers and into `metrics.jsonl` in the run directory."""

import json
import logging
import re
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import ray

from efficient_rollout.files import written_whole
from efficient_rollout.metrics.timeline import TIMELINE_FILE, StepTimelines, is_sampled
from efficient_rollout.verl_plugin import ROLLOUT_NAME
from efficient_rollout.verl_plugin.rollout_record import Segment, step_metrics, step_timelines

logger = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"
_ENGINE_SERVER = re.compile(rf"{ROLLOUT_NAME}_server_(\d+)_0")
_VALIDATION_KEY = re.compile(r"val(-\w+)?/")


def engine_servers() -> list[Any]:
    """Handles of the servers that own an engine, by replica; further nodes of a replica have none."""
    found = {}
    for name in ray.util.list_named_actors():
        if match := _ENGINE_SERVER.fullmatch(name):
            found[int(match[1])] = ray.get_actor(name)
    return [found[rank] for rank in sorted(found)]


def collect_segments() -> list[list[Segment]]:
    """Take, and thereby reset, what every engine recorded since the last call."""
    replies = ray.get([server.take_segments.remote() for server in engine_servers()])
    return [[Segment.from_dict(raw) for raw in reply] for reply in replies]


class StepLogger:
    """A logger backend of veRL's `Tracking`, placed first: adds this package's metrics to the step's own.

    veRL's backends after it see the completed metrics. Both of veRL's trainers log once a step.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._timelines = TimelineFile(path.parent / TIMELINE_FILE)

    def log(self, data: MutableMapping[str, Any], step: int) -> None:
        """Complete `data` in place and append it to the file."""
        validated = any(_VALIDATION_KEY.match(key) for key in data)
        segments = collect_segments()
        data.update(step_metrics(segments, validated=validated))
        self._timelines.add(StepTimelines.of(step, step_timelines(segments, validated=validated)))
        record = {"step": step, "time": time.time()} | {key: _as_json(value) for key, value in data.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class TimelineFile:
    """The timelines of sampled steps and of the newest one: a few lines, however long the run.

    Args:
        path: An earlier run's there is removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: list[str] = []
        path.unlink(missing_ok=True)

    def add(self, timelines: StepTimelines) -> None:
        """Put a step in the place of the newest one, which stays where it is sampled; nothing without a timeline."""
        if not timelines.engines:
            return
        line = json.dumps(timelines.to_dict()) + "\n"
        with written_whole(self._path) as staged:
            staged.write_text("".join([*self._kept, line]), encoding="utf-8")
        if is_sampled(timelines.step):
            self._kept.append(line)


def step_logger(config: Mapping[str, Any] | None) -> StepLogger | None:
    """The backend for a job with this configuration; None where the job does not use this package."""
    if config is None or "actor_rollout_ref" not in config:
        return None
    if config["actor_rollout_ref"]["rollout"]["name"] != ROLLOUT_NAME:
        return None
    return StepLogger(Path(config["trainer"]["default_local_dir"]).expanduser().resolve() / FILE_NAME)


def _as_json(value: Any) -> Any:
    """A number as a number; anything a logger might render otherwise as text."""
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "size", 1) == 1:
        return item()
    return str(value)
