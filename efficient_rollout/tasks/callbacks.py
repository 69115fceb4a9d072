"""What happens around training steps: progress lines, measurements, the decision to stop, and saves."""

import logging
import threading
import time
from collections.abc import Callable

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from efficient_rollout.tasks.evaluation import Measurement
from efficient_rollout.tasks.recipes import Schedule

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
    """Measures sampled accuracy at regular steps and stops training once it reaches the schedule's target.

    Every measurement is kept in the trainer's `log_history` as `step`, `accuracy`, `length_mean` and `seconds`, where
    `seconds` includes the runs that were interrupted.
    """

    def __init__(self, schedule: Schedule, progress: Progress, measure: Callable[[], Measurement]) -> None:
        self._schedule = schedule
        self._progress = progress
        self._measure = measure
        self._earlier_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training so far, measurements and interrupted runs included."""
        return self._earlier_seconds + self._progress.seconds

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        measured = [entry for entry in state.log_history if "accuracy" in entry]
        if measured:
            self._earlier_seconds = measured[-1]["seconds"]
            self._progress.say(f"resuming at step {state.global_step}, accuracy {measured[-1]['accuracy']:.2f}")
            control.should_training_stop = measured[-1]["accuracy"] >= self._schedule.target_accuracy

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        where = f"step {state.global_step} of at most {state.max_steps}"
        self._progress.status = where
        if state.global_step % self._schedule.eval_every_steps and state.global_step < state.max_steps:
            return
        self._progress.status = f"measuring accuracy at {where}"
        result = self._measure()
        self._progress.say(
            f"{where}, accuracy {result.accuracy:.2f} (target {self._schedule.target_accuracy}), "
            f"well formed {result.well_formed:.2f}"
        )
        state.log_history.append(
            {
                "step": state.global_step,
                "accuracy": result.accuracy,
                "length_mean": result.length_mean,
                "seconds": self.seconds,
            }
        )
        control.should_save = self._schedule.resumable
        control.should_training_stop = result.accuracy >= self._schedule.target_accuracy
