"""Every step's engine statistics, into veRL's own loggers and into `metrics.jsonl` in the run directory."""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import ray

from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_record import Segment, step_metrics, step_timelines
from efficient_rollout.metrics.step_file import StepFiles
from efficient_rollout.metrics.timeline import StepTimelines
from efficient_rollout.verl_plugin import ROLLOUT_NAME

logger = logging.getLogger(__name__)

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
    return [[Segment.from_dict(raw) for raw in segments] for reply in replies for segments in reply]


class StepLogger:
    """A logger backend of veRL's `Tracking`, placed first: adds this package's metrics to the step's own.

    veRL's backends after it see the completed metrics. Both of veRL's trainers log once a step.
    """

    def __init__(self, directory: Path) -> None:
        self._files = StepFiles(directory)
        self._is_defined = False

    def log(self, data: MutableMapping[str, Any], step: int) -> None:
        """Complete `data` in place and append it to the file."""
        self._define_in_wandb()
        validated = any(_VALIDATION_KEY.match(key) for key in data)
        segments = collect_segments()
        data.update(step_metrics(segments, validated=validated))
        self._files.add_timelines(StepTimelines.of(step, step_timelines(segments, validated=validated)))
        self._files.append(step, data)

    def _define_in_wandb(self) -> None:
        """Tell a run of wandb's, where the job has one, how to sum our metrics up; once, before the first is logged."""
        wandb = sys.modules.get("wandb")
        if self._is_defined or wandb is None or wandb.run is None:
            return
        self._is_defined = True
        for metric in names.all_metrics():
            pattern = f"{metric.name}*" if metric.name.endswith("/") else metric.name
            best = {"up": ",max", "down": ",min", None: ""}[metric.good]
            wandb.run.define_metric(pattern, summary=f"last,mean{best}")


def step_logger(config: Mapping[str, Any] | None) -> StepLogger | None:
    """The backend for a job with this configuration; None where the job does not use this package."""
    if config is None or "actor_rollout_ref" not in config:
        return None
    if config["actor_rollout_ref"]["rollout"]["name"] != ROLLOUT_NAME:
        return None
    return StepLogger(Path(config["trainer"]["default_local_dir"]).expanduser().resolve())
