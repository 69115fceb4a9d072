"""Where drafts of a chain write their keys and values, and what they attend to."""

from collections import defaultdict
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from vllm.model_executor.layers.attention.attention import Attention
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.spec_decode.utils import PADDING_SLOT_ID
from vllm.v1.worker.utils import AttentionGroup

from efficient_rollout.engine.cpu.native_attention import is_native
from efficient_rollout.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """Holds the inputs of every step of one chain, for n requests and k steps.

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
    """Lets the drafter attend to whole blocks that hold the first and the last tokens.

    It skips the blocks between.

    Keys in the cache carry their rotary positions, so that leaving blocks out moves none.

    Attributes:
        num_tokens: At least so many of the last tokens, the one being fed included.
        num_sink_tokens: At least so many of the first, which models attend to whatever they say.
    """

    num_tokens: int
    num_sink_tokens: int


def drafts_left(tokens_left: int) -> int:
    """Return how many draft tokens are worth verifying for a request that may emit `tokens_left` more.

    Verifying k emits up to k + 1.
    """
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
    """Return the blocks left, int32 [n, blocks], and the tokens left out, int64 [n]."""
    num_sinks = -(-window.num_sink_tokens // block_size)
    first = ((num_computed + 1 - window.num_tokens) // block_size).clamp_min(num_sinks)
    # At most so many blocks hold the window at the first step and the chain behind it.
    num_kept = num_sinks + -(-(window.num_tokens + num_steps) // block_size) + 1
    columns = torch.arange(min(num_kept, block_table.shape[1]))
    sources = torch.where(columns < num_sinks, columns, first.unsqueeze(1) + columns - num_sinks)
    kept = block_table[: num_computed.shape[0]].gather(1, sources.clamp_max(block_table.shape[1] - 1))
    return kept.contiguous(), (first - num_sinks) * block_size


@dataclass(slots=True)
class _Group:
    """Names layers that are told the same: they share a block table, and a window or none.

    Attributes:
        stock: vLLM's view of them, with the builder of their metadata.
        block_size: Tokens per block of their block table.
        has_own_window: Whether the policy itself attends to a sliding window there.
        is_native: Whether the native kernel attends in all of them.
    """

    stock: AttentionGroup
    block_size: int
    has_own_window: bool
    is_native: bool

    @property
    def cache_group(self) -> int:
        """Return the number of their group in the KV cache, which has a block table for each."""
        return self.stock.kv_cache_group_id


class DraftAttention:
    """Lays out chains of drafts in the policy's KV cache, whose layers may have windows of their own.

    vLLM frees blocks that a sliding window has left behind, so it keeps a block table per kind of layer. Blocks of
    every kind exist for the positions of a chain: the policy verifies there.

    Args:
        runner: vLLM's model runner.
        layers: The drafter's attention layers, by name.
        kv_cache_config: vLLM's, with these layers in its groups.
        kernel_block_sizes: Tokens per block of each group's block table.
        window: Of layers without a window of their own; None attends to everything.

    Raises:
        UnsupportedModelError: A window is asked for, and every layer has one already.
    """

    def __init__(
        self,
        runner: Any,
        layers: Mapping[str, Attention],
        kv_cache_config: Any,
        kernel_block_sizes: list[int],
        window: AttentionWindow | None,
    ) -> None:
        self._runner, self.window = runner, window
        alike: dict[tuple[int, str, int | None], list[str]] = defaultdict(list)
        for index, cache_group in enumerate(kv_cache_config.kv_cache_groups):
            for name in sorted(layers.keys() & set(cache_group.layer_names)):
                backend = layers[name].get_attn_backend().full_cls_name()
                alike[index, str(backend), layers[name].sliding_window].append(name)
        self.groups = []
        for (index, _, own_window), names in alike.items():
            stock = AttentionGroup(
                backend=layers[names[0]].get_attn_backend(),
                layer_names=names,
                kv_cache_spec=kv_cache_config.kv_cache_groups[index].kv_cache_spec,
                kv_cache_group_id=index,
            )
            block_size = kernel_block_sizes[index]
            stock.create_metadata_builders(runner.vllm_config, runner.device, kernel_block_size=block_size)
            native = all(is_native(layers[name], runner.kv_cache_dtype) for name in names)
            self.groups.append(_Group(stock, block_size, own_window is not None, native))
        if window is not None and all(group.has_own_window for group in self.groups):
            raise UnsupportedModelError(
                "drafter.attention_window_tokens is set, but every layer of this policy has a sliding window of its "
                "own, which the drafter keeps to; unset it"
            )

    def plan(self, num_steps: int, num_computed: torch.Tensor) -> list[DraftPlan]:
        """Make one plan per group; their positions are the same.

        Args:
            num_steps: Draft tokens per request.
            num_computed: int64 [num_requests], tokens whose KV is the policy's.
        """
        tables = self._runner.input_batch.block_table
        num_requests = num_computed.shape[0]
        # The block table's row of a request is not cleared beyond its blocks: a slot looked up there may belong to
        # another request.
        capacity = torch.full_like(num_computed, self._runner.max_model_len)
        for group in self.groups:
            num_blocks = torch.from_numpy(tables[group.cache_group].num_blocks_per_row[:num_requests]).to(capacity)
            capacity = torch.minimum(capacity, num_blocks * group.block_size)
        return [
            plan_chain(
                num_steps,
                num_computed,
                capacity,
                tables[group.cache_group].get_device_tensor(num_requests),
                group.block_size,
                None if group.has_own_window else self.window,
            )
            for group in self.groups
        ]

    def metadata(
        self, common: CommonAttentionMetadata, plans: list[DraftPlan], step: int
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return attention metadata and slots of one step, by layer name.

        Args:
            common: Of a batch with one token per request.
            plans: From `plan`.
            step: Of the chain; steps are asked for in order.
        """
        if step == 0:
            self._built: list[Any] = [None] * len(self.groups)
        per_layer, slots = {}, {}
        for index, (group, plan) in enumerate(zip(self.groups, plans, strict=True)):
            seq_lens, max_seq_len = plan.seq_lens[step], plan.max_seq_lens[step]
            if step > 0 and group.is_native:
                # Stock kernels want their work divided anew for every length; the native one does not.
                built = self._built[index]
                built.seq_lens, built.max_seq_len, built.slot_mapping = seq_lens, max_seq_len, plan.slots[step]
            else:
                mine = copy(common)
                mine.seq_lens, mine.max_seq_len = seq_lens, max_seq_len
                mine.block_table_tensor, mine.slot_mapping = plan.block_table, plan.slots[step]
                builder = group.stock.get_metadata_builder()
                self._built[index] = builder.build_for_drafting(common_attn_metadata=mine, draft_index=step)
            for name in group.stock.layer_names:
                per_layer[name], slots[name] = self._built[index], plan.slots[step]
        return per_layer, slots
