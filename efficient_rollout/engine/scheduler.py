"""The adapter between vLLM's scheduler and the controller: decides, hands on, observes."""

import uuid
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from efficient_rollout.controller.drafter_health import DrafterHealth
from efficient_rollout.controller.state import DecodeState
from efficient_rollout.controller.tick import TickBook, TickResult, VerifiedDrafts
from efficient_rollout.engine.engine_args import settings_of
from efficient_rollout.engine.refusal import end_all_requests
from efficient_rollout.engine.rules import rule_from
from efficient_rollout.engine.stop_strings import split_by_token
from efficient_rollout.engine.worker_report import report_on
from efficient_rollout.metrics.rollout_stats import RolloutStats

# Where statistics ride from the scheduler to the worker, which may be another process.
STATS_ATTRIBUTE = "efficient_rollout_stats"
_TICKS_PER_REPORT = 32


class _Decide:
    """Stands where stock keeps its table by batch size: `schedule()` indexes it once per tick."""

    def __init__(self, scheduler: "Controlled") -> None:
        self._scheduler = scheduler

    def __getitem__(self, num_scheduled_requests: int) -> int:
        return self._scheduler.decide(num_scheduled_requests)


class Controlled:
    """Before one of vLLM's schedulers among the bases: only the number of draft tokens is the controller's.

    The number asked for at one tick is drafted at the end of it and verified at the next.

    Attributes:
        num_drafts_asked: Draft tokens per request that the tick scheduled last asks for.
    """

    num_drafts_asked = 0

    if TYPE_CHECKING:
        vllm_config: Any
        running: list[Request]
        waiting: Any
        requests: dict[str, Request]
        has_unfinished_requests: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = settings_of(self.vllm_config)
        self._max_draft_tokens = settings.controller.max_draft_tokens
        rule = rule_from(
            settings,
            self.vllm_config.model_config.model,
            tensor_parallel_size=self.vllm_config.parallel_config.tensor_parallel_size,
        )
        self._book = TickBook(rule, DrafterHealth())
        self._stats = RolloutStats()
        # Tells this engine's timeline from others', whatever host they run on.
        self._engine_name = uuid.uuid4().hex
        self.dynamic_sd_lookup = _Decide(self)

    def decide(self, num_scheduled_requests: int) -> int:
        """Draft tokens per request to ask the worker for at this tick."""
        return self._book.decide(self._state(num_scheduled_requests)).num_draft_tokens

    def _state(self, num_scheduled_requests: int) -> DecodeState:
        running = self.running
        num_tokens = sum(request.num_tokens for request in running)
        return DecodeState(
            num_running_requests=num_scheduled_requests,
            num_waiting_requests=len(self.waiting),
            num_prefill_tokens=sum(max(0, r.num_prompt_tokens - r.num_computed_tokens) for r in running),
            mean_context_tokens=num_tokens / len(running) if running else 0.0,
            max_draft_tokens=self._max_draft_tokens,
        )

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Stock, with the statistics of the ticks since the last report riding along now and then."""
        self._book.begin()
        output = super().schedule(*args, **kwargs)
        self.num_drafts_asked = self._book.decision.num_draft_tokens
        if self._stats.num_ticks >= _TICKS_PER_REPORT or not self.has_unfinished_requests():
            setattr(output, STATS_ATTRIBUTE, self._stats)
            self._stats = RolloutStats()
        return output

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        """Stock, with what was verified and what was emitted told to the controller."""
        report = report_on(model_runner_output)
        if report is not None:
            self._book.hear(report.health)
        # Before stock: it cuts the lists of sampled tokens at a request's end, and forgets requests that ended.
        verified = self._verified(scheduler_output, model_runner_output)
        with_stop_strings = {
            request_id
            for request_id in scheduler_output.scheduled_spec_decode_tokens
            if (request := self.requests.get(request_id)) is not None and request.sampling_params.stop
        }
        core_outputs = super().update_from_output(scheduler_output, model_runner_output)
        if with_stop_strings:
            for of_client in core_outputs.values():
                of_client.outputs = split_by_token(of_client.outputs, with_stop_strings)
        if report is not None and report.health.weights_fault is not None:
            end_all_requests(self, core_outputs, report.health.weights_fault)
        if scheduler_output.total_num_scheduled_tokens:
            result = TickResult(
                num_requests=len(scheduler_output.num_scheduled_tokens),
                num_computed_tokens=scheduler_output.total_num_scheduled_tokens,
                num_emitted_tokens=sum(len(r.new_token_ids) for c in core_outputs.values() for r in c.outputs),
                verified=verified,
                chain_length=0 if report is None else report.chain_length,
                goes_on=self.has_unfinished_requests(),
            )
            self._stats.add_tick(self._book.finish(result), engine=self._engine_name)
        else:
            self._book.leave_out()
        return core_outputs

    def tells_of_the_drafter(self, request: Request) -> bool:
        """Whether the drafter follows the request's sampling in every respect; it knows of no grammar."""
        return not request.use_structured_output

    def _verified(self, scheduled: SchedulerOutput, output: ModelRunnerOutput) -> VerifiedDrafts:
        verified, num_telling, num_accepted = VerifiedDrafts(), 0, 0
        if not scheduled.scheduled_spec_decode_tokens:
            return verified
        for request_id, draft_tokens in scheduled.scheduled_spec_decode_tokens.items():
            sampled = output.sampled_token_ids[output.req_id_to_index[request_id]]
            if not sampled:
                continue
            verified.add(len(draft_tokens), len(sampled) - 1)
            request = self.requests.get(request_id)
            if request is not None and self.tells_of_the_drafter(request):
                num_telling += 1
                num_accepted += len(sampled) > 1
        self._book.health.observe_first_drafts(num_telling, num_accepted)
        return verified


class EfficientScheduler(Controlled, Scheduler):
    """For an engine that knows a tick's result before it schedules the next."""
