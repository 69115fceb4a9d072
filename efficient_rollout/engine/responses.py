"""How responses end: at a stop string among several tokens of a tick; with an error where weights are no policy's."""

import copy
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import RequestStatus

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler


def split_by_token(outputs: list[EngineCoreOutput], request_ids: Collection[str]) -> list[EngineCoreOutput]:
    """Return outputs with those of some requests in pieces of one token each.

    Args:
        outputs: Of one tick.
        request_ids: Requests that have stop strings and were given several tokens.
    """
    pieces: list[EngineCoreOutput] = []
    for output in outputs:
        pieces += _pieces(output) if output.request_id in request_ids else [output]
    return pieces


def _pieces(output: EngineCoreOutput) -> list[EngineCoreOutput]:
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


logger = logging.getLogger(__name__)


def without_tokens(scheduled: SchedulerOutput) -> ModelRunnerOutput:
    """Return the worker's answer to a tick that it does not compute: nothing was sampled."""
    request_ids = list(scheduled.num_scheduled_tokens)
    return ModelRunnerOutput(
        req_ids=request_ids,
        req_id_to_index={request_id: row for row, request_id in enumerate(request_ids)},
        sampled_token_ids=[[] for _ in request_ids],
        logprobs=None,
        prompt_logprobs_dict={},
        pooler_output=[],
    )


def end_all_requests(scheduler: "Scheduler", outputs: dict[int, EngineCoreOutputs], fault: str) -> None:
    """End every request with vLLM's finish reason "error".

    Args:
        scheduler: The engine's.
        outputs: Of the tick, by client; the requests' last outputs are added.
        fault: Why the weights are no policy's.
    """
    ended = [request for request in scheduler.requests.values() if not request.is_finished()]
    scheduler.finish_requests([request.request_id for request in ended], RequestStatus.FINISHED_ERROR)
    logger.error("the engine refuses to generate, and ended %d requests with an error: %s", len(ended), fault)
    for request in ended:
        outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(
            EngineCoreOutput(
                request_id=request.request_id, new_token_ids=[], finish_reason=request.get_finished_reason()
            )
        )
    # Blocks are entered as soon as they are scheduled, and these were never computed.
    scheduler.reset_prefix_cache()
