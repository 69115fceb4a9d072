"""Logits of several positions of a request at once, each processed and sampled as stock vLLM's sampler would its own.

Stock's sampler knows one row of logits for each request of the batch. Here every position is a row, with its request's
parameters, and with the tokens before it: those that the runner knows, and those that are only drafted so far.

So requests that vLLM refuses beside speculation are served: its rejection sampler knows no `min_p`, no `logit_bias` and
no custom logits processors, which are built as for an engine without speculation.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
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
from vllm.v1.sample.metadata import SamplingMetadata

_STATELESS = (AdapterLogitsProcessor, LogitBiasLogitsProcessor, MinPLogitsProcessor, MinTokensLogitsProcessor)


@dataclass(frozen=True, slots=True)
class Positions:
    """Names rows of logits, in the order of requests, and of positions within a request."""

    requests: list[int]  # each row's, as its row in the batch
    steps: list[int]  # each row's place among its request's
    new_tokens: list[list[int]]  # tokens before each row that the runner does not know yet
    outputs: list[list[int]]  # the runner's lists of each request's sampled tokens
    num_requests: int  # of the batch; some may have no row

    @classmethod
    def of(cls, rows: list[tuple[int, int, list[int]]], outputs: list[list[int]], num_requests: int) -> "Positions":
        """Take each row's request, step and new tokens."""
        requests, steps, new_tokens = (list(column) for column in zip(*rows, strict=True))
        return cls(requests, steps, new_tokens, outputs, num_requests)


def metadata_at(sampling: SamplingMetadata, positions: Positions) -> SamplingMetadata:
    """Return the batch's metadata, with a row for each position."""
    rows = positions.requests
    index = None if rows == list(range(positions.num_requests)) else torch.tensor(rows)

    def repeated(values: torch.Tensor | None) -> torch.Tensor | None:
        return values if values is None or index is None else values[index]

    changed: dict[str, Any] = {name: repeated(getattr(sampling, name)) for name in ("temperature", "top_p", "top_k")}
    if not sampling.no_penalties:
        penalties = ("prompt_token_ids", "frequency_penalties", "presence_penalties", "repetition_penalties")
        changed |= {name: repeated(getattr(sampling, name)) for name in penalties}
    if not sampling.no_penalties or sampling.bad_words_token_ids:
        known = zip(rows, positions.new_tokens, strict=True)
        changed["output_token_ids"] = [[*sampling.output_token_ids[request], *new] for request, new in known]
    for name in ("bad_words_token_ids", "logprob_token_ids"):
        of_requests = getattr(sampling, name, None)
        if of_requests:
            changed[name] = {row: of_requests[request] for row, request in enumerate(rows) if request in of_requests}
    holder = sampling.thinking_budget_state_holder
    has_budgets = holder is not None and holder.has_tracked_requests()
    return replace(
        sampling,
        **changed,
        generators={},
        allowed_token_ids_mask=repeated(sampling.allowed_token_ids_mask),
        logitsprocs=LogitsProcessors(processors_at(sampling.logitsprocs, positions)),
        spec_token_ids=None,
        thinking_budget_state_holder=_HolderAt(holder, positions) if has_budgets else None,
    )


def processors_at(processors: LogitsProcessors, positions: Positions) -> Iterator[LogitsProcessor]:
    """Yield, for each processor that concerns a request of the batch, one that knows these positions."""
    for processor in processors.all:
        if isinstance(processor, MinTokensLogitsProcessor):
            if processor.min_toks:
                yield _MinTokensAt(processor, positions)
        elif not _is_idle(processor):
            yield _ProcessorAt(processor, positions)


def _is_idle(processor: LogitsProcessor) -> bool:
    if isinstance(processor, MinPLogitsProcessor):
        return not processor.min_p_count
    if isinstance(processor, LogitBiasLogitsProcessor):
        return not processor.biases
    return isinstance(processor, AdapterLogitsProcessor) and not processor.req_info


class _At(LogitsProcessor):
    """Adapts a processor of the batch to rows that are positions."""

    def __init__(self, processor: Any, positions: Positions) -> None:
        self._processor, self._positions = processor, positions

    def is_argmax_invariant(self) -> bool:
        return self._processor.is_argmax_invariant()

    def update_state(self, batch_update: Any) -> None:
        raise NotImplementedError("it lives for one batch")


class _MinTokensAt(_At):
    """Allows no stop token before a request has its `min_tokens`; stock keeps the rule of a tick's first position."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        positions = self._positions
        for row, (request, new) in enumerate(zip(positions.requests, positions.new_tokens, strict=True)):
            if request not in self._processor.min_toks:
                continue
            min_tokens, known, stop_ids, *is_structured = self._processor.min_toks[request]
            if len(known) + len(new) >= min_tokens or not stop_ids:
                continue
            stops = torch.tensor(sorted(stop_ids), device=logits.device)
            before = logits[row, stops]
            logits[row, stops] = -torch.inf
            # As stock: a grammar that allows nothing but to stop goes before.
            if any(is_structured) and logits[row].isneginf().all():
                logits[row, stops] = before
        return logits


class _ProcessorAt(_At):
    """Asks a processor, stock or the user's, which takes a row a request: once for each place."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        positions = self._positions
        for rows, requests in _passes(positions):
            held = [(positions.outputs[request], len(positions.outputs[request])) for request in requests]
            try:
                # Processors hold the runner's lists: for so long the tokens before the place are in them.
                for row, (output, _) in zip(rows, held, strict=True):
                    output.extend(positions.new_tokens[row])
                logits[rows] = self._processor.apply(_whole_batch(logits, rows, requests, positions))[requests]
            finally:
                for output, length in held:
                    del output[length:]
        return logits


class _HolderAt:
    """Applies vLLM's rule of thinking budgets; it concerns requests without drafts only (`SelfDraftProposer`)."""

    def __init__(self, holder: Any, positions: Positions) -> None:
        self._holder, self._positions = holder, positions

    def has_tracked_requests(self) -> bool:
        return True

    def update_state(self, _outputs: Any, _drafts: Any, repeat_indices: None = None) -> None:
        self._holder.update_state(self._positions.outputs, None, repeat_indices=repeat_indices)

    def apply_to_logits(self, logits: torch.Tensor, predict_bonus_token: bool, _drafts: Any) -> torch.Tensor:
        rows, requests = next(_passes(self._positions))
        whole = _whole_batch(logits, rows, requests, self._positions)
        logits[rows] = self._holder.apply_to_logits(whole, predict_bonus_token, None)[requests]
        return logits


def _passes(positions: Positions) -> Iterator[tuple[list[int], list[int]]]:
    """Yield rows with one for a request at most, and their requests."""
    for step in sorted(set(positions.steps)):
        rows = [row for row, at in enumerate(positions.steps) if at == step]
        yield rows, [positions.requests[row] for row in rows]


def _whole_batch(logits: torch.Tensor, rows: list[int], requests: list[int], positions: Positions) -> torch.Tensor:
    whole = logits.new_zeros(positions.num_requests, logits.shape[1])
    whole[requests] = logits[rows]
    return whole


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
