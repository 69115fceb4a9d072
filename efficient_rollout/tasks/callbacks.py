"""What happens around training steps: progress lines, measurements, and the decision to stop."""

import logging
import threading
import time
from collections.abc import Callable

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from efficient_rollout.tasks.evaluation import Measurement
from efficient_rollout.tasks.training_plans import Schedule

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 4.0
"""Longest silence while a policy is trained or measured."""


class Progress:
    """While entered, logs a line every `PROGRESS_SECONDS`, whatever is going on; a thread of its own does it.

    Attributes:
        status: What is going on, for the next line.
    """

    def __init__(self, subject: str) -> None:
        self.status = "starting"
        self._subject = subject
        self._started = time.monotonic()
        self._said = threading.Event()
        self._finished = False
        self._thread = threading.Thread(target=self._keep_saying, name="progress", daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._finished = True
        self._said.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self._started

    def say(self, text: str) -> None:
        """Log `text` now."""
        logger.info("%s: %s, %.0f s", self._subject, text, self.seconds)
        self._said.set()

    def _keep_saying(self) -> None:
        while not self._finished:
            if not self._said.wait(PROGRESS_SECONDS):
                logger.info("%s: %s, %.0f s", self._subject, self.status, self.seconds)
            self._said.clear()


class StopWhenPartlyRight(TrainerCallback):
    """Says which step it is, measures sampled accuracy where the schedule wants it, and stops training at its target.

    Every measurement is kept in the trainer's `log_history` as `step`, `accuracy`, `length_mean` and `seconds`.
    """

    def __init__(self, schedule: Schedule, progress: Progress, measure: Callable[[int], Measurement]) -> None:
        """`measure` takes a number of problems."""
        self._easy_steps = schedule.easy_steps
        self._stop = schedule.stop
        self._progress = progress
        self._measure = measure

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        where = f"step {state.global_step} of at most {state.max_steps}"
        self._progress.status = where
        if self._stop is None or state.global_step <= self._easy_steps or state.global_step % self._stop.every_steps:
            return
        self._progress.status = f"measuring accuracy at {where}"
        result = self._measure(self._stop.num_problems)
        self._progress.say(
            f"{where}, accuracy {result.accuracy:.2f} (target {self._stop.accuracy}), "
            f"well formed {result.well_formed:.2f}"
        )
        state.log_history.append(
            {
                "step": state.global_step,
                "accuracy": result.accuracy,
                "length_mean": result.length_mean,
                "seconds": self._progress.seconds,
            }
        )
        control.should_training_stop = result.accuracy >= self._stop.accuracy
