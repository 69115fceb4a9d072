"""Engine classes for probing and benchmarking: requests say how their ticks are decided, and every tick is recorded.

Products and training jobs use `EfficientScheduler`; only `calibrate` and `bench` name these classes.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm.model_executor.model_loader.weight_utils import safetensors_weights_iterator
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput

from efficient_rollout.controller.inputs import RuleInputs
from efficient_rollout.controller.registry import make_rule
from efficient_rollout.controller.rule import Never, Rule
from efficient_rollout.controller.script import PATTERN, Script
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.cost_model.profile import load_profile
from efficient_rollout.vllm_plugin.engine_args import settings_of
from efficient_rollout.vllm_plugin.rules import profile_key, profiled_scheme
from efficient_rollout.vllm_plugin.scheduler import EfficientScheduler
from efficient_rollout.vllm_plugin.worker import CpuWorker

SCHEDULER = "efficient_rollout.vllm_plugin.measuring.scripted.ScriptedScheduler"
WORKER = "efficient_rollout.vllm_plugin.measuring.scripted.RecordingWorker"
# Keys of a request's `extra_args`, beside `PATTERN`. The oldest running request decides for the batch.
RULE, RUN = "rule", "run"  # a rule's name, and a number that is new for each rollout
PREFILLED = "prefilled"  # true: the prompt's KV is taken as computed, whatever is in it
_TICK_ATTRIBUTE = "efficient_rollout_tick"
_KEY_ATTRIBUTE = "efficient_rollout_profile_key"

# Key of the seconds inside the worker, the other parts among them.
WORKER_PART = "worker"


def parts_of_tick(seconds: float, inside_worker: dict[str, float]) -> dict[str, float]:
    """Where a tick's seconds went, without overlap; they add up to the tick.

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


class ScriptedScheduler(EfficientScheduler):
    """The product's scheduler with the decision taken from a script, or from a rule that can be changed.

    A rule keeps its memory from one rollout to the next and is told of a weight sync in between, as in training.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings_of(self.vllm_config)
        self._script = Script()
        self._rules: dict[str, Rule] = {}
        self._run: int | None = None
        self._tick_table: TickTable | None = None
        # From this process, which is the one that will compare it.
        key = profile_key(
            self.vllm_config.model_config.model,
            profiled_scheme(self._settings),
            tensor_parallel_size=self.vllm_config.parallel_config.tensor_parallel_size,
        )
        self._unsent_key: dict[str, str] | None = asdict(key)

    def decide(self, num_scheduled_requests: int) -> int:
        """As the oldest running request asks."""
        wanted = self.running[0].sampling_params.extra_args or {}
        if PATTERN in wanted:
            # Nothing is concluded from acceptance: weights may be random, and only latencies asked for.
            self._book.health.forget()
            self._script.pattern = wanted[PATTERN]
            self._book.rule = self._script
        else:
            self._follow(wanted)
        return super().decide(num_scheduled_requests)

    def _follow(self, wanted: dict[str, Any]) -> None:
        if RULE not in wanted or wanted[RUN] == self._run:
            return
        self._run = wanted[RUN]
        rule = self._rules.get(wanted[RULE])
        if rule is None:
            rule = self._rules[wanted[RULE]] = make_rule(wanted[RULE], self._rule_inputs())
        else:
            rule.mark_stale()
        self._book.rule = rule

    def _rule_inputs(self) -> RuleInputs:
        controller = self._settings.controller
        if controller.profile is not None and self._tick_table is None:
            profile = load_profile(Path(controller.profile))
            self._tick_table = TickTable(profile.model, controller.max_draft_tokens)
        return RuleInputs(max_draft_tokens=controller.max_draft_tokens, table=self._tick_table)

    def add_request(self, request: Any) -> None:
        """Stock; a `prefilled` prompt is admitted as one whose KV came from elsewhere, all but its last token."""
        super().add_request(request)
        num_known = request.num_prompt_tokens - 1
        if num_known > 0 and request.sampling_params and (request.sampling_params.extra_args or {}).get(PREFILLED):
            blocks = self.kv_cache_manager.allocate_slots(request, num_known, delay_cache_blocks=True)
            assert blocks is not None, "the KV cache cannot hold the context to be timed"
            request.num_computed_tokens = num_known

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """The product's, with the decision written on the output for the worker's record."""
        output = super().schedule(*args, **kwargs)
        context = self._state(len(output.num_scheduled_tokens)).mean_context_tokens
        setattr(output, _TICK_ATTRIBUTE, {"mean_context_tokens": context, "reason": self._book.decision.reason})
        setattr(output, _KEY_ATTRIBUTE, self._unsent_key)
        self._unsent_key = None
        return output

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Stock, between rollouts; the rule of the last one is told when its own next one starts."""
        self._book.rule = Never()
        return super().reset_prefix_cache(*args, **kwargs)


class RecordingWorker(CpuWorker):
    """The product's worker; each tick with work leaves a record."""

    def init_device(self) -> None:
        super().init_device()
        self._parts: dict[str, float] = {}
        self._time(self.model_runner, "_model_forward", "target_forward")
        self._time(self.model_runner, "_sample", "verify_sampling")
        if self.self_drafter is not None:
            self._time(self.self_drafter, "_forward", "draft_forward")
            self._time(self.self_drafter, "_sample", "draft_sampling")
        self._ticks: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._key: dict[str, str] | None = None

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        """Stock; a tick's seconds end where the next one begins."""
        self._close_tick(time.perf_counter())
        self._key = getattr(scheduler_output, _KEY_ATTRIBUTE, None) or self._key
        if scheduler_output.total_num_scheduled_tokens:
            self._open = self._record(scheduler_output)
        self._parts.clear()
        started = time.perf_counter()
        output = super().execute_model(scheduler_output)
        self._count_part(WORKER_PART, started)
        return output

    def sample_tokens(self, grammar_output: Any) -> ModelRunnerOutput | None:
        """Stock, with its seconds counted as the worker's."""
        started = time.perf_counter()
        output = super().sample_tokens(grammar_output)
        self._count_part(WORKER_PART, started)
        if self._open is not None and self.self_drafter is not None:
            # A chain ends early where no request may emit more.
            self._open["num_drafted"] = self.self_drafter.chain_length
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

    def _record(self, scheduled: SchedulerOutput) -> dict[str, Any]:
        num_requests = len(scheduled.num_scheduled_tokens)
        num_verified = sum(map(len, scheduled.scheduled_spec_decode_tokens.values()))
        return {
            "started": time.perf_counter(),
            "num_requests": num_requests,
            "num_verified": num_verified,
            "num_drafted": scheduled.num_spec_tokens_to_schedule,
            "had_prefill": scheduled.total_num_scheduled_tokens != num_requests + num_verified,
            "draft_seconds": self._draft_seconds(),
            **getattr(scheduled, _TICK_ATTRIBUTE, {"mean_context_tokens": 0.0, "reason": ""}),
        }

    def _close_tick(self, now: float) -> None:
        if self._open is None:
            return
        tick, self._open = self._open, None
        tick["seconds"] = now - tick["started"]
        tick["draft_seconds"] = max(0.0, self._draft_seconds() - tick["draft_seconds"])
        tick["part_seconds"] = parts_of_tick(tick["seconds"], self._parts)
        self._ticks.append(tick)

    def _draft_seconds(self) -> float:
        return self.self_drafter.draft_seconds if self.self_drafter is not None else 0.0

    def take_ticks(self) -> list[dict[str, Any]]:
        """Finished ticks since the last call, oldest first, as dictionaries of `TickRecord`."""
        ticks, self._ticks = self._ticks, []
        return ticks

    def sync_from(self, checkpoint: str) -> dict[str, float]:
        """A weight sync from a checkpoint's files; returns seconds, as a dictionary of `WeightSyncSeconds`."""
        stats = self.stats
        requantized_before, started = stats.requantize_seconds, time.perf_counter()
        with self.weight_sync(self) as sync:
            for file in sorted(Path(checkpoint).glob("*.safetensors")):
                sync.load(safetensors_weights_iterator([str(file)], use_tqdm_on_load=False))
        return {
            "weight_sync": time.perf_counter() - started,
            "requantize": stats.requantize_seconds - requantized_before,
        }

    def drafter_memory(self) -> dict[str, int]:
        """What the drafter holds, as a dictionary of `DrafterMemory`."""
        assert self.self_drafter is not None
        packed = self.self_drafter.packed
        num_weights = sum(layer.out_features * layer.in_features for layer in packed.layers.values())
        return {"drafter_bytes": packed.num_bytes, "num_packed_weights": num_weights}

    def latency_profile_key(self) -> dict[str, str] | None:
        """What a latency profile measured in this engine belongs to; None before its first tick."""
        return self._key
