"""Workers for probing and benchmarking: every tick is recorded.

Products and training jobs use the workers that these begin with; only `calibrate`, `bench` and `gpu-check` name these.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm.model_executor.model_loader.weight_utils import safetensors_weights_iterator
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput

from efficient_rollout.engine.cpu.worker import CpuWorker

# Key of the seconds inside the worker, the other parts among them.
WORKER_PART = "worker"
_LAPS = "laps"


def parts_of_tick(seconds: float, inside_worker: dict[str, float]) -> dict[str, float]:
    """Say where a tick's seconds went, without overlap; they add up to the tick.

    Beside the parts, that is what is left of the whole worker, `WORKER_PART` (its batch, inputs and outputs), and what
    is outside of it (scheduling, messages between processes, the engine's answer).
    """
    parts = dict(inside_worker)
    worker_s = parts.pop(WORKER_PART, 0.0)
    parts["runner_bookkeeping"] = worker_s - sum(parts.values())
    return {**parts, "scheduling_and_messages": seconds - worker_s}


class Recording:
    """Stands before one of this package's workers among the bases; each tick with work leaves a record.

    Seconds inside the drafter are its device's own, by the laps of its stopwatch.
    """

    _tells_parts = False  # a GPU works while the host does

    def init_device(self) -> None:
        """Run the worker's own, with a drafter whose laps are kept."""
        super().init_device()
        self._ticks: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._parts: dict[str, float] = {}
        if self.self_drafter is not None:
            self.self_drafter.stopwatch.keep_laps()

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        """Run the worker's own; a tick's seconds end where the next one begins."""
        self._close_tick(time.perf_counter())
        if scheduler_output.total_num_scheduled_tokens:
            self._open = self._record(scheduler_output)
        self._parts.clear()
        with self._part(WORKER_PART):
            return super().execute_model(scheduler_output)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Run the worker's own."""
        with self._part(WORKER_PART):
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
            _LAPS: [self._num_laps()],
        }

    def _close_tick(self, now: float) -> None:
        if self._open is None:
            return
        tick, self._open = self._open, None
        tick["seconds"] = now - tick["started"]
        tick["part_seconds"] = parts_of_tick(tick["seconds"], self._parts) if self._tells_parts else {}
        tick[_LAPS].append(self._num_laps())
        self._ticks.append(tick)

    def _num_laps(self) -> int:
        return 0 if self.self_drafter is None else self.self_drafter.stopwatch.num_laps

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._parts[name] = self._parts.get(name, 0.0) + time.perf_counter() - started

    def take_ticks(self) -> list[dict[str, Any]]:
        """Return finished ticks since the last call, oldest first, as dictionaries of `TickRecord`."""
        ticks, self._ticks = self._ticks, []
        laps = {} if self.self_drafter is None else self.self_drafter.stopwatch.take_laps()
        for tick in ticks:
            tick["draft_seconds"] = sum(laps.get(lap, 0.0) for lap in range(*tick.pop(_LAPS)))
        return ticks

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
        packed = self.self_drafter.packed
        num_weights = sum(layer.out_features * layer.in_features for layer in packed.layers.values())
        return {"drafter_bytes": packed.num_bytes, "num_packed_weights": num_weights}


class RecordingWorker(Recording, CpuWorker):
    """Is the worker of measured engines on a CPU, with the seconds of a tick's parts."""

    _tells_parts = True

    def init_device(self) -> None:
        """Run the worker's own, and time the parts of what it made."""
        super().init_device()
        self._time(self.model_runner, "_model_forward", "target_forward")
        self._time(self.model_runner, "_sample", "verify_sampling")
        if self.self_drafter is not None:
            self._time(self.self_drafter, "_forward", "draft_forward")
            self._time(self.self_drafter, "_sample", "draft_sampling")

    def _time(self, owner: Any, method: str, part: str) -> None:
        setattr(owner, method, self._part(part)(getattr(owner, method)))
