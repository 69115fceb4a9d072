"""Every step's engine statistics, into veRL's own loggers and into `metrics.jsonl` in the run directory."""

import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import ray
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from efficient_rollout.dashboards.wandb_panel import ReportingWandb
from efficient_rollout.metrics import names
from efficient_rollout.metrics.rollout_record import Segment, step_metrics, step_timelines
from efficient_rollout.metrics.step_file import StepFiles, mark_checkpoint
from efficient_rollout.verl_plugin import ROLLOUT_NAME

_ENGINE_SERVER = re.compile(rf"{ROLLOUT_NAME}_server_(\d+)_0")
_VALIDATION_KEY = re.compile(r"val(-\w+)?/")
# veRL's own: of every step that trained, and of one that saved a checkpoint.
_TRAINED, _SAVED = "training/global_step", "timing_s/save_checkpoint"


def collect_segments() -> list[list[Segment]]:
    """Take, and thereby reset, what every engine recorded since the last call, by replica.

    The first server of a replica owns its engine; those on further nodes have none.
    """
    found = {}
    for name in ray.util.list_named_actors():
        if match := _ENGINE_SERVER.fullmatch(name):
            found[int(match[1])] = ray.get_actor(name)
    replies = ray.get([found[rank].take_segments.remote() for rank in sorted(found)])
    return [[Segment.from_dict(raw) for raw in segments] for reply in replies for segments in reply]


class StepLogger:
    """Adds this package's metrics to the step's own: a backend of veRL's `Tracking`, before those that log them.

    Both of veRL's trainers log once a step, and once before the first where they validate then.
    """

    def __init__(self, directory: Path, resumed_from: Path | None = None) -> None:
        self.directory = directory
        self._files = StepFiles(directory, resumed_from)
        self.run_id = self._files.run_id

    def before(self, loggers: Mapping[str, Any]) -> dict[str, Any]:
        """Return veRL's loggers, this one first; wandb is told how to sum our metrics up, and gets the run's page."""
        ours = {"efficient_rollout": self, **loggers}
        if "wandb" in ours:
            for metric in names.all_metrics():
                pattern = f"{metric.name}*" if metric.name.endswith("/") else metric.name
                best = {"up": ",max", "down": ",min", None: ""}[metric.good]
                ours["wandb"].run.define_metric(pattern, summary=f"last,mean{best}")
            ours["wandb"] = ReportingWandb(ours["wandb"], self.directory)
        return ours

    def log(self, data: MutableMapping[str, Any], step: int) -> None:
        """Complete `data` in place and append it to the file."""
        validated = any(_VALIDATION_KEY.match(key) for key in data)
        segments = collect_segments()
        data.update(step_metrics(segments, validated=validated))
        timelines = step_timelines(step, segments, validated=validated)
        is_validation = validated and _TRAINED not in data
        self._files.append(step, data, None if is_validation else timelines, is_validation=is_validation)
        if _SAVED in data:
            mark_checkpoint(self.directory / f"global_step_{step}", self.run_id)


def step_logger(config: Mapping[str, Any] | None) -> StepLogger | None:
    """Return the backend for a job with this configuration; None where the job does not use this package."""
    rollout = (config or {}).get("actor_rollout_ref", {}).get("rollout", {})
    if config is None or rollout.get("name") != ROLLOUT_NAME:
        return None
    trainer = config["trainer"]
    return StepLogger(Path(trainer["default_local_dir"]).expanduser().resolve(), resumed_checkpoint(trainer))


def resumed_checkpoint(trainer: Mapping[str, Any]) -> Path | None:
    """Return the folder that veRL's trainer of this configuration resumes from; None where it starts anew."""
    if trainer["resume_mode"] == "disable":
        return None
    if trainer["resume_mode"] == "resume_path":
        return Path(trainer["resume_from_path"]).absolute()
    found = find_latest_ckpt_path(str(Path(trainer["default_local_dir"]).absolute()))
    return None if found is None else Path(found)
