"""Stop strings and several tokens a tick: what the front end needs to cut a response where plain decoding would.

vLLM looks for stop strings where responses become text, in the caller's process, once per output of the engine. Up to
0.31 it cuts the text there and leaves token ids and log-probabilities behind the stop string as they came. One output
per token makes it look after each token, as without speculation: it ends the request at the first match and ignores the
outputs that follow.
"""

import copy
from collections.abc import Collection

from vllm.v1.engine import EngineCoreOutput


def split_by_token(outputs: list[EngineCoreOutput], request_ids: Collection[str]) -> list[EngineCoreOutput]:
    """Outputs with those of some requests in pieces of one token each.

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
