"""Requests that vLLM refuses beside speculation, served: `min_p`, `logit_bias` and custom logits processors.

vLLM's rejection sampler knows none of these, so that it builds a speculating engine without them. The verifier of this
package asks vLLM's plain sampler, which knows all: they are built as for an engine without speculation.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.config import ModelConfig, VllmConfig
from vllm.v1.sample.logits_processor import (
    AdapterLogitsProcessor,
    LogitBiasLogitsProcessor,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
    build_logitsprocs,
)

_STATELESS = (AdapterLogitsProcessor, LogitBiasLogitsProcessor, MinPLogitsProcessor, MinTokensLogitsProcessor)


@contextmanager
def custom_processors_hidden(model_config: ModelConfig) -> Iterator[None]:
    """Hide custom processors while a runner is made, which refuses them beside speculation."""
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


def can_look_ahead(batch: Any) -> bool:
    """Tell whether what is asked for the tokens behind a draft can be known before it is accepted.

    A processor of the user's own that is no `AdapterLogitsProcessor` may keep a state that advances with each token,
    and so does vLLM's rule of thinking budgets.
    """
    holder = batch.sampling_metadata.thinking_budget_state_holder
    if holder is not None and holder.has_tracked_requests():
        return False
    return all(isinstance(processor, _STATELESS) for processor in batch.logitsprocs.all)
