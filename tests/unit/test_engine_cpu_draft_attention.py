"""Layers with a window of their own keep it, and a chain stays within the blocks of every group."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="the block tables are vLLM's")

import torch
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.worker.block_table import BlockTable
from vllm.v1.worker.utils import AttentionGroup

from efficient_rollout.engine.cpu.draft_attention import AttentionWindow, DraftAttention, DraftRows, _Group

BLOCK, MAX_MODEL_LEN = 32, 256
WINDOW = AttentionWindow(num_tokens=8, num_sink_tokens=4)


def block_table(*blocks):
    table = BlockTable(BLOCK, 2, MAX_MODEL_LEN // BLOCK, 64, False, torch.device("cpu"), BLOCK, 1)
    table.add_row(list(blocks), 0)
    table.block_table.gpu = table.block_table.cpu  # as vLLM's runner for CPUs does
    return table


def attention(*tables, windows, window=None):
    """As an engine builds it, of groups that have a window of their own or none."""
    made = DraftAttention.__new__(DraftAttention)
    batch = SimpleNamespace(block_table=tables)
    made._runner, made.window = SimpleNamespace(input_batch=batch, max_model_len=MAX_MODEL_LEN), window
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32)
    made.groups = [
        _Group(AttentionGroup(CPUAttentionBackend, [f"{index}"], spec, index), BLOCK, has_window, False)
        for index, has_window in enumerate(windows)
    ]
    return made


def test_a_window_of_the_drafter_is_for_layers_without_one():
    tables = block_table(0, 0, 13, 14), block_table(21, 22, 23, 24)
    made = attention(*tables, windows=(True, False), window=WINDOW)
    made.begin(torch.tensor([110]), 2)
    own, other = made.tables
    # The first blocks of the group with windows are another request's by now.
    assert own.read_from[0, :4].tolist() == [0, 0, 13, 14]
    assert own.num_skipped.tolist() == [0]
    assert other.read_from[0, :2].tolist() == [21, 24]
    assert other.num_skipped.tolist() == [2 * BLOCK]
    rows = DraftRows.of([0], [110], [2])
    assert own.slots(rows).tolist() == [14 * BLOCK + 14, 14 * BLOCK + 15]
    assert other.slots(rows).tolist() == [24 * BLOCK + 14, 24 * BLOCK + 15]


def test_a_chain_ends_where_the_blocks_of_any_group_do():
    tables = block_table(11, 12), block_table(21, 22, 23)
    assert attention(*tables, windows=(True, False)).capacity(1).tolist() == [2 * BLOCK]
