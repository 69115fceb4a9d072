"""The run's page as a panel in wandb, so that a team that watches wandb needs no command."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efficient_rollout.dashboards.cli import REPORT_PACKAGES, require
from efficient_rollout.errors import EfficientRolloutError
from efficient_rollout.metrics.timeline import is_sampled

logger = logging.getLogger(__name__)

PANEL = "efficient_rollout/report"
# The steps whose timelines are kept, as long as they are close together; then every so many. A page has megabytes.
_EVERY = 128
# OpenRLHF's name of a step, in what it logs of one.
_STEP = "train/global_step"


class ReportingWandb:
    """Stands where a framework keeps wandb, and logs the run's page with it: in some steps, and at the end.

    A page that cannot be made is no reason to end a training job: it is left out, which the job's log says once. The
    run has begun; the files of its directory hold a step before it is logged.
    """

    def __init__(self, wandb: Any, directory: Path) -> None:
        self._wandb, self._directory = wandb, directory
        self._newest = self._drawn = 0
        self._told = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wandb, name)

    def log(self, data: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> Any:
        """Do as wandb does; where the page is due, it comes in the same row."""
        number = data.get(_STEP) if step is None else step
        # An evaluation logs its step a second time, and the one before training is step 0.
        if number is not None and number > self._newest:
            self._newest = number
            if is_sampled(number) if number <= _EVERY else number % _EVERY == 0:
                self._log_page(step=step, commit=False)
        return self._wandb.log(data, step=step, **kwargs)

    def finish(self, *args: Any, **kwargs: Any) -> Any:
        """Do as wandb does, with the page of the last step before it."""
        # While Python ends, nothing can be imported any more.
        if self._newest > self._drawn and not sys.is_finalizing():
            self._log_page(step=None, commit=True)
        return self._wandb.finish(*args, **kwargs)

    def _log_page(self, *, step: int | None, commit: bool) -> None:
        try:
            require("the report in wandb", REPORT_PACKAGES)
            from efficient_rollout.dashboards.page import render
            from efficient_rollout.training_runs.run import read_run

            page = self._wandb.Html(render(read_run(self._directory)), inject=False, data_is_not_path=True)
            self._wandb.log({PANEL: page}, step=step, commit=commit)
            self._drawn = self._newest
        except (EfficientRolloutError, OSError) as fault:
            if str(fault) != self._told:
                logger.warning("wandb gets no report of step %d: %s", self._newest, fault)
            self._told = str(fault)
