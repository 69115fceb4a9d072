"""Where drafts of a chain write their keys and values, and what they attend to."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from vllm.model_executor.layers.attention.attention import Attention
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.worker.utils import AttentionGroup

from efficient_rollout.engine.cpu.native_attention import is_native
from efficient_rollout.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class AttentionWindow:
    """Lets the drafter attend to whole blocks that hold the first and the last tokens, and skip those between.

    Keys in the cache carry their rotary positions, so that leaving blocks out moves none.

    Attributes:
        num_tokens: At least so many of the last tokens, the one being fed included.
        num_sink_tokens: At least so many of the first, which models attend to whatever they say.
    """

    num_tokens: int
    num_sink_tokens: int


@dataclass(frozen=True, slots=True)
class DraftTables:
    """Says where the chains of a tick write and what they read, in one group of layers, for n requests."""

    slots_from: torch.Tensor  # int32 [n, blocks], the policy's block table
    read_from: torch.Tensor  # int32 [n, blocks], of the blocks attended to
    num_skipped: torch.Tensor  # int64 [n], tokens left out before those
    block_size: int

    @classmethod
    def of(
        cls,
        num_computed: torch.Tensor,
        most_drafts: int,
        block_table: torch.Tensor,
        block_size: int,
        window: AttentionWindow | None,
    ) -> "DraftTables":
        """Lay out a tick's chains.

        Args:
            num_computed: int64 [n], tokens whose KV is the policy's; a chain's first row feeds the token after them.
            most_drafts: Of any request.
            block_table: int32 [n, blocks] or wider, the policy's.
            block_size: Tokens per block.
            window: None attends to everything.
        """
        if window is None:
            return cls(block_table, block_table, torch.zeros_like(num_computed), block_size)
        num_sinks = -(-window.num_sink_tokens // block_size)
        first = ((num_computed + 1 - window.num_tokens) // block_size).clamp_min(num_sinks)
        # At most so many blocks hold the window of the first token and the chain behind it.
        num_kept = num_sinks + -(-(window.num_tokens + most_drafts) // block_size) + 1
        columns = torch.arange(min(num_kept, block_table.shape[1]))
        sources = torch.where(columns < num_sinks, columns, first.unsqueeze(1) + columns - num_sinks)
        kept = block_table[: num_computed.shape[0]].gather(1, sources.clamp_max(block_table.shape[1] - 1))
        return cls(block_table, kept.contiguous(), (first - num_sinks) * block_size, block_size)

    def slots(self, rows: "DraftRows") -> torch.Tensor:
        """Return where the KV of each row goes: int64 [rows]."""
        blocks = self.slots_from[rows.requests_of_rows, rows.positions // self.block_size].long()
        return blocks * self.block_size + rows.positions % self.block_size


@dataclass(frozen=True, slots=True)
class DraftRows:
    """Holds the rows of one draft pass as tensors, for m requests that have any."""

    requests: torch.Tensor  # int64 [m], ascending
    starts: torch.Tensor  # int32 [m + 1], first row of each
    requests_of_rows: torch.Tensor  # int64 [rows]
    positions: torch.Tensor  # int64 [rows], of the token each row feeds
    last_positions: torch.Tensor  # int64 [m], of each request's last row
    most_rows: int  # of one request

    @classmethod
    def of(cls, requests: Sequence[int], first_positions: Sequence[int], num_rows: Sequence[int]) -> "DraftRows":
        """Lay out rows of requests, ascending, by the position of each one's first row, and their numbers."""
        counts = np.array(num_rows)
        starts = np.zeros(len(counts) + 1, dtype=np.int32)
        np.cumsum(counts, out=starts[1:])
        firsts = np.array(first_positions, dtype=np.int64)
        positions = np.repeat(firsts - starts[:-1], counts) + np.arange(starts[-1])
        names = np.array(requests, dtype=np.int64)
        return cls(
            torch.from_numpy(names),
            torch.from_numpy(starts),
            torch.from_numpy(np.repeat(names, counts)),
            torch.from_numpy(positions),
            torch.from_numpy(firsts + counts - 1),
            int(counts.max()),
        )


@dataclass(slots=True)
class _Group:
    """Names layers that are told the same: they share a block table, and a window of the policy's own or none."""

    stock: AttentionGroup
    block_size: int
    has_own_window: bool
    is_native: bool  # the native kernel attends in all of them

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

    def capacity(self, num_requests: int) -> torch.Tensor:
        """Return the positions that each request's own blocks hold, in every group: int64 [num_requests].

        Beyond them the row of a block table is not cleared: a slot looked up there may be another request's.
        """
        capacity = torch.full((num_requests,), self._runner.max_model_len)
        for group in self.groups:
            table = self._runner.input_batch.block_table[group.cache_group]
            num_blocks = torch.from_numpy(table.num_blocks_per_row[:num_requests]).to(capacity)
            capacity = torch.minimum(capacity, num_blocks * group.block_size)
        return capacity

    def begin(self, num_computed: torch.Tensor, most_drafts: int) -> None:
        """Begin a tick's chains, with arguments as in `DraftTables.of`."""
        tables = self._runner.input_batch.block_table
        self.tables = [
            DraftTables.of(
                num_computed,
                most_drafts,
                tables[group.cache_group].get_device_tensor(num_computed.shape[0]),
                group.block_size,
                None if group.has_own_window else self.window,
            )
            for group in self.groups
        ]
        self._built: list[Any] = [None] * len(self.groups)

    def metadata(
        self, common: CommonAttentionMetadata, rows: DraftRows
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return attention metadata and slots of one pass, by layer name; `common` is the batch's last one."""
        per_layer, slots = {}, {}
        for index, (group, tables) in enumerate(zip(self.groups, self.tables, strict=True)):
            seq_lens = (rows.last_positions + 1 - tables.num_skipped[rows.requests]).int()
            changed = {
                "num_actual_tokens": len(rows.positions),
                "max_query_len": rows.most_rows,
                "query_start_loc": rows.starts,
                "seq_lens": seq_lens,
                "max_seq_len": int(seq_lens.max()),
                "slot_mapping": tables.slots(rows),
            }
            is_whole = len(rows.requests) == len(tables.read_from)
            read_from = tables.read_from if is_whole else tables.read_from[rows.requests]
            if self._built[index] is not None and group.is_native:
                # Stock kernels want their work divided anew for every pass; the native one does not.
                self._built[index] = replace(self._built[index], block_table=read_from, **changed)
            else:
                mine = replace(
                    common,
                    num_reqs=len(rows.requests),
                    block_table_tensor=read_from,
                    query_start_loc_cpu=rows.starts,
                    **changed,
                )
                self._built[index] = group.stock.get_metadata_builder().build_for_drafting(mine, 0)
            for name in group.stock.layer_names:
                per_layer[name], slots[name] = self._built[index], changed["slot_mapping"]
        return per_layer, slots
