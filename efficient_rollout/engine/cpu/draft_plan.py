"""Where a chain of drafts reads and writes the KV cache: computed once, before its first step."""

from dataclasses import dataclass

import torch
from vllm.v1.spec_decode.utils import PADDING_SLOT_ID


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """Inputs of every step of one chain, for n requests and k steps.

    Attributes:
        positions: int64 [k, n], of the token each step feeds; 0 where its slot would be another request's.
        slots: int64 [k, n], where its KV goes; vLLM's padding slot where it has none.
        seq_lens: int32 [k, n], tokens each step attends to, its own included.
        max_seq_lens: The largest of each step.
        block_table: int32 [n, blocks], of the tokens attended to.
    """

    positions: torch.Tensor
    slots: torch.Tensor
    seq_lens: torch.Tensor
    max_seq_lens: list[int]
    block_table: torch.Tensor


@dataclass(frozen=True, slots=True)
class AttentionWindow:
    """The drafter attends to whole blocks that hold the first and the last tokens, and skips those between.

    Keys in the cache carry their rotary positions, so that leaving blocks out moves none.

    Attributes:
        num_tokens: At least so many of the last tokens, the one being fed included.
        num_sink_tokens: At least so many of the first, which models attend to whatever they say.
    """

    num_tokens: int
    num_sink_tokens: int


def drafts_left(tokens_left: int) -> int:
    """Draft tokens worth verifying for a request that may emit `tokens_left` more: verifying k emits up to k + 1."""
    return max(0, tokens_left - 1)


def plan_chain(
    num_steps: int,
    num_computed: torch.Tensor,
    capacity: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    window: AttentionWindow | None,
) -> DraftPlan:
    """Lay out a chain.

    Args:
        num_steps: Draft tokens per request.
        num_computed: int64 [n], tokens whose KV is the policy's; the first step feeds the token after them.
        capacity: int64 [n], positions each request's own blocks hold. A request without a slot left writes nothing,
            attends to its first token, and drafts a guess that the policy will judge.
        block_table: int32 [n, blocks] or wider, the policy's.
        block_size: Tokens per block.
        window: None attends to everything.
    """
    positions = num_computed + torch.arange(num_steps).unsqueeze(1)
    fits = positions < capacity
    positions = torch.where(fits, positions, 0)
    blocks = block_table[: num_computed.shape[0]].gather(1, (positions // block_size).t()).t().long()
    slots = torch.where(fits, blocks * block_size + positions % block_size, PADDING_SLOT_ID)
    seq_lens = positions + 1
    if window is not None:
        block_table, num_skipped = _windowed(num_steps, num_computed, block_table, block_size, window)
        seq_lens = torch.where(fits, seq_lens - num_skipped, 1)
    return DraftPlan(positions, slots, seq_lens.int(), seq_lens.amax(dim=1).tolist(), block_table)


def _windowed(
    num_steps: int, num_computed: torch.Tensor, block_table: torch.Tensor, block_size: int, window: AttentionWindow
) -> tuple[torch.Tensor, torch.Tensor]:
    """The blocks left, int32 [n, blocks], and the tokens left out, int64 [n]."""
    num_sinks = -(-window.num_sink_tokens // block_size)
    first = ((num_computed + 1 - window.num_tokens) // block_size).clamp_min(num_sinks)
    # At most so many blocks hold the window at the first step and the chain behind it.
    num_kept = num_sinks + -(-(window.num_tokens + num_steps) // block_size) + 1
    columns = torch.arange(min(num_kept, block_table.shape[1]))
    sources = torch.where(columns < num_sinks, columns, first.unsqueeze(1) + columns - num_sinks)
    kept = block_table[: num_computed.shape[0]].gather(1, sources.clamp_max(block_table.shape[1] - 1))
    return kept.contiguous(), (first - num_sinks) * block_size
