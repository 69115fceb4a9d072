"""Requests that vLLM refuses beside speculation, served: `min_p`, `logit_bias` and custom logits processors.

vLLM's rejection sampler knows none of these, so that it builds a speculating engine without them. Its plain sampler,
which also draws the token of a request that has no drafts, knows all: they are built as for an engine without
speculation, and the requests they concern are not drafted for.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.config import ModelConfig, VllmConfig
from vllm.v1.sample.logits_processor import (
    AdapterLogitsProcessor,
    LogitBiasLogitsProcessor,
    LogitsProcessor,
    LogitsProcessors,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
    build_logitsprocs,
)


@contextmanager
def custom_processors_hidden(model_config: ModelConfig) -> Iterator[None]:
    """While a runner is made, which refuses them beside speculation."""
    processors, model_config.logits_processors = model_config.logits_processors, None
    try:
        yield
    finally:
        model_config.logits_processors = processors


def use_every_processor(runner: Any, vllm_config: VllmConfig) -> None:
    """Give a new runner the logits processors it would have without speculation."""
    plain = copy.copy(vllm_config)
    plain.speculative_config = None
    custom = tuple(vllm_config.model_config.logits_processors or ())
    batch = runner.input_batch
    batch.logitsprocs = build_logitsprocs(plain, runner.device, False, False, custom)
    batch.logitsprocs_need_output_token_ids = bool(custom)
    batch.sampling_metadata = batch._make_sampling_metadata()


def rows_without_drafts(processors: LogitsProcessors, num_requests: int) -> set[int]:
    """Rows of the batch whose tokens the rejection sampler would draw from another distribution than asked for."""
    rows: set[int] = set()
    for processor in processors.all:
        rows.update(_rows_of(processor, num_requests))
    return rows


def _rows_of(processor: LogitsProcessor, num_requests: int) -> Any:
    if isinstance(processor, MinTokensLogitsProcessor):
        return ()
    if isinstance(processor, MinPLogitsProcessor):
        return processor.min_p_cpu[:num_requests].nonzero()[0].tolist() if processor.min_p_count else ()
    if isinstance(processor, LogitBiasLogitsProcessor):
        return processor.biases
    if isinstance(processor, AdapterLogitsProcessor):
        return processor.req_info
    # Whom a processor of the user's own concerns, only it knows.
    return range(num_requests)
