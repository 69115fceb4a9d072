"""The adapter between vLLM's scheduler and the controller: decides, hands on, observes."""

import copy
import itertools
import logging
import uuid
from typing import TYPE_CHECKING, Any

from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from efficient_rollout.controller.rule import DecodeState
from efficient_rollout.controller.tick import DrafterHealth, TickBook, TickResult, VerifiedDrafts
from efficient_rollout.engine.profiles import rule_from
from efficient_rollout.engine.record import record_of, report_on
from efficient_rollout.engine.request_word import longest_draft
from efficient_rollout.metrics.timeline import LaneRecorder

logger = logging.getLogger(__name__)

# What changes logits between the policy and a draw, and that a captured draft step does not do.
_UNFOLLOWED = (
    "allowed_token_ids", "bad_words", "frequency_penalty", "logit_bias", "min_p", "min_tokens", "presence_penalty",
    "repetition_penalty", "top_k", "top_p",
)  # fmt: skip
_PLAIN = SamplingParams()


class _Decide:
    """Stands where stock keeps its table by batch size: `schedule()` indexes it once per tick."""

    def __init__(self, scheduler: "Controlled") -> None:
        self._scheduler = scheduler

    def __getitem__(self, num_scheduled_requests: int) -> int:
        return self._scheduler.decide(num_scheduled_requests)


class Controlled:
    """Stands before one of vLLM's schedulers among the bases; only the number of draft tokens is the controller's.

    The number asked for at one tick, `num_draft_tokens`, is drafted at the end of it and verified at the next.
    """

    num_draft_tokens = 0

    if TYPE_CHECKING:
        vllm_config: Any
        running: list[Request]
        waiting: Any
        requests: dict[str, Request]
        has_unfinished_requests: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._record = record_of(self.vllm_config)
        settings = self._record.settings
        self._max_draft_tokens = settings.controller.max_draft_tokens
        num_workers = self.vllm_config.parallel_config.tensor_parallel_size
        rule = rule_from(settings, self.vllm_config.model_config.model, tensor_parallel_size=num_workers)
        self._book = TickBook(rule, DrafterHealth())
        self._verified = VerifiedDrafts()
        self._num_first_drafts = self._num_first_stood = 0
        self._drafts_to_judge: tuple[int, int, SpecDecodingStats | None] | None = None
        # Tells this engine's timeline from others', whatever host they run on.
        self._engine_name = uuid.uuid4().hex
        self._lanes = LaneRecorder()
        self.dynamic_sd_lookup = _Decide(self)

    def decide(self, num_scheduled_requests: int) -> int:
        """Return the draft tokens per request to ask the worker for at this tick."""
        return self._book.decide(self._state(num_scheduled_requests)).num_draft_tokens

    def _state(self, num_scheduled_requests: int) -> DecodeState:
        running = self.running
        num_tokens = sum(request.num_tokens for request in running)
        return DecodeState(
            num_running_requests=num_scheduled_requests,
            num_waiting_requests=len(self.waiting),
            num_prefill_tokens=sum(max(0, r.num_prompt_tokens - r.num_computed_tokens) for r in running),
            mean_context_tokens=num_tokens / len(running) if running else 0.0,
            max_draft_tokens=max(map(self._longest_draft, running), default=self._max_draft_tokens),
        )

    def _longest_draft(self, request: Request) -> int:
        return longest_draft(request.sampling_params.extra_args, self._max_draft_tokens)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Run stock; the controller decides in it."""
        self._book.begin()
        output = super().schedule(*args, **kwargs)
        self._lanes.begin(request.req_id for request in output.scheduled_new_reqs)
        self.num_draft_tokens = self._book.decision.num_draft_tokens
        return output

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        """Run stock, and tell the controller what was verified and what was emitted."""
        self._lanes.end_tick()
        report = report_on(model_runner_output)
        if report is not None:
            self._book.hear(report.health)
        with_stop_strings = {
            request_id
            for request_id in scheduler_output.scheduled_spec_decode_tokens
            if (request := self.requests.get(request_id)) is not None and request.sampling_params.stop
        }
        core_outputs = super().update_from_output(scheduler_output, model_runner_output)
        if with_stop_strings:
            for of_client in core_outputs.values():
                parts = [_split(one) if one.request_id in with_stop_strings else [one] for one in of_client.outputs]
                of_client.outputs = list(itertools.chain.from_iterable(parts))
        # Where the next tick is scheduled early, one may have been refused whose requests ended before it: what it
        # says of the weights may be out of date.
        is_of_a_request = any(request_id in self.requests for request_id in scheduler_output.num_scheduled_tokens)
        if report is not None and report.health.weights_fault is not None and is_of_a_request:
            _end_all_requests(self, core_outputs, report.health.weights_fault)
        verified, self._verified = self._verified, VerifiedDrafts()
        self._book.health.observe_first_drafts(self._num_first_drafts, self._num_first_stood)
        self._num_first_drafts = self._num_first_stood = 0
        if scheduler_output.total_num_scheduled_tokens:
            result = TickResult(
                num_requests=len(scheduler_output.num_scheduled_tokens),
                num_computed_tokens=scheduler_output.total_num_scheduled_tokens,
                num_emitted_tokens=sum(len(r.new_token_ids) for c in core_outputs.values() for r in c.outputs),
                verified=verified,
                num_drafted=0 if report is None else report.num_drafted,
                drafting=None if report is None else report.drafting,
                goes_on=self.has_unfinished_requests(),
            )
            self._record.tally.recent.add_tick(self._book.finish(result), engine=self._engine_name)
        else:
            self._book.leave_out()
        return core_outputs

    def make_spec_decoding_stats(
        self,
        spec_decoding_stats: SpecDecodingStats | None,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: dict[str, int] | None,
        request_id: str,
    ) -> SpecDecodingStats | None:
        """Remember the drafts: stock's own statistics count what requests gain, known once a response's end is."""
        if self.log_stats and spec_decoding_stats is None:
            spec_decoding_stats = SpecDecodingStats.new(self.num_spec_tokens)
        num_invalid = (num_invalid_spec_tokens or {}).get(request_id, 0)
        self._drafts_to_judge = num_draft_tokens, num_draft_tokens - num_invalid, spec_decoding_stats
        return spec_decoding_stats

    def _update_request_with_output(self, request: Request, new_token_ids: list[int], **kwargs: Any) -> Any:
        """Run stock, which cuts the tokens at the response's end; then count the request's drafts."""
        num_sampled, judged = len(new_token_ids), self._drafts_to_judge
        self._drafts_to_judge = None
        emitted, stopped = super()._update_request_with_output(request, new_token_ids, **kwargs)
        if judged is not None:
            num_draft_tokens, num_valid, stats = judged
            self._verified.add(num_draft_tokens, num_sampled_tokens=num_sampled, num_emitted_tokens=len(emitted))
            self._lanes.add_pass(request.request_id, num_draft_tokens, max(0, len(emitted) - 1))
            if self.tells_of_the_drafter(request):
                self._num_first_drafts += 1
                self._num_first_stood += num_sampled > 1
            if stats is not None:
                stats.observe_draft(num_draft_tokens=num_valid, num_accepted_tokens=max(0, len(emitted) - 1))
        return emitted, stopped

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Run stock for a request that has ended, for whatever reason; so does its lane."""
        lane = self._lanes.end(request.request_id, request.num_output_tokens)
        if lane is not None:
            self._record.tally.recent.add_lane(lane, engine=self._engine_name)
        return super()._free_request(request, *args, **kwargs)

    def tells_of_the_drafter(self, request: Request) -> bool:
        """Tell whether the drafter follows the request's sampling in every respect; it knows of no grammar."""
        return not request.use_structured_output


class EfficientScheduler(Controlled, Scheduler):
    """Serves an engine that knows a tick's result before it schedules the next."""


class AsyncEfficientScheduler(Controlled, AsyncScheduler):
    """Serves vLLM's V2 model runner, with asynchronous scheduling on or off."""

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        """Take drafts as stock does, where scheduling is not asynchronous, cut to what was asked and is wanted."""
        for request_id, drafts in zip(draft_token_ids.req_ids, draft_token_ids.draft_token_ids, strict=True):
            request = self.requests.get(request_id)
            wanted = 0 if request is None else self._longest_draft(request)
            del drafts[min(self.num_draft_tokens, wanted) :]
        super().update_draft_token_ids(draft_token_ids)

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        """Run stock, which leaves room for drafts that are not there yet; then cut it to what each request wants."""
        super()._update_after_schedule(scheduler_output)
        for request_id in scheduler_output.num_scheduled_tokens if scheduler_output.num_spec_tokens_to_schedule else ():
            request = self.requests[request_id]
            request.spec_token_ids = request.spec_token_ids[: self._longest_draft(request)]

    def tells_of_the_drafter(self, request: Request) -> bool:
        """Tell whether a draft step follows the request's sampling: drafts of others are rejected for that alone."""
        return super().tells_of_the_drafter(request) and follows(request.sampling_params)


def follows(parameters: SamplingParams) -> bool:
    """Tell whether a captured draft step draws as these parameters say: with nothing set but the temperature."""
    # A greedy request's truncation is nobody's; vLLM takes it away itself.
    return all((getattr(parameters, name) or 0) == (getattr(_PLAIN, name) or 0) for name in _UNFOLLOWED)


def _split(output: EngineCoreOutput) -> list[EngineCoreOutput]:
    """Return an output in pieces of one token each."""
    num_tokens = len(output.new_token_ids)
    if num_tokens < 2:
        return [output]
    pieces = []
    for i, token in enumerate(output.new_token_ids):
        piece = copy.copy(output)
        piece.new_token_ids = [token]
        if output.new_logprobs is not None:
            piece.new_logprobs = output.new_logprobs.slice_request(i, 1)
        if i > 0:
            # What a request tells once came with its first token.
            piece.events = piece.prefill_stats = piece.new_prompt_logprobs_tensors = None
        if i < num_tokens - 1:
            piece.finish_reason = piece.stop_reason = piece.kv_transfer_params = None
        pieces.append(piece)
    return pieces


def _end_all_requests(scheduler: Scheduler, outputs: dict[int, EngineCoreOutputs], fault: str) -> None:
    """End every request with vLLM's finish reason "error"; their last outputs are added to the tick's, by client."""
    ended = [request for request in scheduler.requests.values() if not request.is_finished()]
    scheduler.finish_requests([request.request_id for request in ended], RequestStatus.FINISHED_ERROR)
    logger.error("the engine refuses to generate, and ended %d requests with an error: %s", len(ended), fault)
    for request in ended:
        last = EngineCoreOutput(request.request_id, new_token_ids=[], finish_reason=request.get_finished_reason())
        outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(last)
    # Blocks are entered as soon as they are scheduled, and these were never computed.
    scheduler.reset_prefix_cache()
