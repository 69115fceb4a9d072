"""Workers for probing and benchmarking: every tick is recorded.

Products and training jobs use the workers that these begin with; only `calibrate`, `bench` and `gpu-check` name these.
"""

import time
from pathlib import Path
from typing import Any

from vllm.model_executor.model_loader.weight_utils import safetensors_weights_iterator
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput

from efficient_rollout.engine.cpu.worker import CpuWorker

# On a scheduler's output: the mean tokens of a running request.
CONTEXT_ATTRIBUTE = "efficient_rollout_mean_context_tokens"
# Key of the seconds inside the worker, the other parts among them.
WORKER_PART = "worker"
_MARKS = "marks"


def parts_of_tick(seconds: float, inside_worker: dict[str, float]) -> dict[str, float]:
    """Say where a tick's seconds went, without overlap; they add up to the tick.

    Args:
        seconds: Of the tick.
        inside_worker: Seconds by part, and those of the whole worker as `WORKER_PART`.

    Returns:
        The parts, what is left of the worker (its batch, its inputs, its outputs), and what is outside of it
        (scheduling, messages between processes, and the engine's answer).
    """
    parts = dict(inside_worker)
    worker_s = parts.pop(WORKER_PART, 0.0)
    parts["runner_bookkeeping"] = worker_s - sum(parts.values())
    return {**parts, "scheduling_and_messages": seconds - worker_s}


class Recording:
    """Stands before one of this package's workers among the bases; each tick with work leaves a record."""

    def init_device(self) -> None:
        """Run the worker's own."""
        super().init_device()
        self._ticks: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        """Run the worker's own; a tick's seconds end where the next one begins."""
        self._close_tick(time.perf_counter())
        if scheduler_output.total_num_scheduled_tokens:
            self._open = self._record(scheduler_output)
        return super().execute_model(scheduler_output)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Run the worker's own."""
        output = super().sample_tokens(grammar_output)
        if self._open is not None and self.self_drafter is not None:
            # A chain ends early where no request may emit more.
            self._open["num_drafted"] = self.self_drafter.num_drafted
        return output

    def _record(self, scheduled: SchedulerOutput) -> dict[str, Any]:
        num_requests = len(scheduled.num_scheduled_tokens)
        num_verified = sum(map(len, scheduled.scheduled_spec_decode_tokens.values()))
        return {
            "started": time.perf_counter(),
            "num_requests": num_requests,
            "num_verified": num_verified,
            "num_drafted": scheduled.num_spec_tokens_to_schedule,
            "had_prefill": scheduled.total_num_scheduled_tokens != num_requests + num_verified,
            _MARKS: [self._draft_mark()],
            "mean_context_tokens": getattr(scheduled, CONTEXT_ATTRIBUTE, 0.0),
        }

    def _close_tick(self, now: float) -> None:
        if self._open is None:
            return
        tick, self._open = self._open, None
        tick["seconds"] = now - tick["started"]
        tick[_MARKS].append(self._draft_mark())
        tick["part_seconds"] = self._parts_of(tick["seconds"])
        self._ticks.append(tick)

    def _draft_mark(self) -> float:
        """Return where the drafter's clock stands."""
        raise NotImplementedError

    def _draft_seconds_between(self, marks: list[list[float]]) -> list[float]:
        """Return the seconds inside the drafter, between each two marks, oldest first."""
        raise NotImplementedError

    def _parts_of(self, seconds: float) -> dict[str, float]:
        """Say where a tick's seconds went; empty where that is not known."""
        return {}

    def take_ticks(self) -> list[dict[str, Any]]:
        """Return finished ticks since the last call, oldest first, as dictionaries of `TickRecord`."""
        ticks, self._ticks = self._ticks, []
        draft_seconds = self._draft_seconds_between([tick.pop(_MARKS) for tick in ticks])
        return [{**tick, "draft_seconds": seconds} for tick, seconds in zip(ticks, draft_seconds, strict=True)]

    def sync_from(self, checkpoint: str) -> dict[str, float]:
        """Sync weights from a checkpoint's files; return seconds, reading the files included, and of requantizing."""
        stats = self.tally.recent
        requantized_before, started = stats.requantize_seconds, time.perf_counter()
        with self.weight_sync(self) as sync:
            for file in sorted(Path(checkpoint).glob("*.safetensors")):
                sync.load(safetensors_weights_iterator([str(file)], use_tqdm_on_load=False))
        return {
            "weight_sync_seconds": time.perf_counter() - started,
            "requantize_seconds": stats.requantize_seconds - requantized_before,
        }

    def drafter_memory(self) -> dict[str, int]:
        """Return the bytes of packed weights, with scales and zero points, and how many weights have such a copy."""
        assert self.self_drafter is not None
        packed = self.self_drafter.packed
        num_weights = sum(layer.out_features * layer.in_features for layer in packed.layers.values())
        return {"drafter_bytes": packed.num_bytes, "num_packed_weights": num_weights}


class _Timed(CpuWorker):
    """Is the product's worker, with the seconds of its parts."""

    def init_device(self) -> None:
        super().init_device()
        self._parts: dict[str, float] = {}
        self._time(self.model_runner, "_model_forward", "target_forward")
        self._time(self.model_runner, "_sample", "verify_sampling")
        if self.self_drafter is not None:
            self._time(self.self_drafter, "_forward", "draft_forward")
            self._time(self.self_drafter, "_sample", "draft_sampling")

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        self._parts.clear()
        started = time.perf_counter()
        output = super().execute_model(scheduler_output)
        self._count_part(WORKER_PART, started)
        return output

    def sample_tokens(self, grammar_output: Any) -> ModelRunnerOutput | None:
        started = time.perf_counter()
        output = super().sample_tokens(grammar_output)
        self._count_part(WORKER_PART, started)
        return output

    def _time(self, owner: Any, method: str, part: str) -> None:
        """Count the seconds of every call of `owner.method` as those of `part`."""
        wrapped = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return wrapped(*args, **kwargs)
            finally:
                self._count_part(part, started)

        setattr(owner, method, timed)

    def _count_part(self, part: str, started: float) -> None:
        self._parts[part] = self._parts.get(part, 0.0) + time.perf_counter() - started


class RecordingWorker(Recording, _Timed):
    """Is the worker of measured engines on a CPU."""

    def _draft_mark(self) -> float:
        return self.self_drafter.stopwatch.seconds() if self.self_drafter is not None else 0.0

    def _draft_seconds_between(self, marks: list[list[float]]) -> list[float]:
        return [max(0.0, end - begin) for begin, end in marks]

    def _parts_of(self, seconds: float) -> dict[str, float]:
        return parts_of_tick(seconds, self._parts)
