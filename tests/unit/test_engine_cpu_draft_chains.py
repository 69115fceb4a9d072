"""A chain of drafts reads what it should and writes only into its own request's slots."""

import pytest

pytest.importorskip("vllm", reason="the padding slot is vLLM's")

import torch

from efficient_rollout.engine.cpu.draft_attention import AttentionWindow, plan_chain

BLOCK = 4
PADDING = -1
# Block numbers of two requests, and what the row of a request that left the engine had behind them.
TABLE = torch.tensor([[10, 11, 12, 13, 14, 15, 16, 17], [20, 21, 99, 99, 99, 99, 99, 99]], dtype=torch.int32)


def plan(num_computed, capacity, num_steps=3, window=None):
    return plan_chain(num_steps, torch.tensor(num_computed), torch.tensor(capacity), TABLE, BLOCK, window)


def attended(plan, step, request):
    """(block, offset) of every token the step reads, in order."""
    num_tokens = plan.seq_lens[step, request]
    return [(plan.block_table[request, t // BLOCK].item(), t % BLOCK) for t in range(num_tokens)]


def place(request, position):
    return TABLE[request, position // BLOCK].item(), position % BLOCK


def test_each_step_reads_everything_before_it_and_writes_behind():
    chain = plan([6, 3], [32, 8])
    for step in range(3):
        for request, first in enumerate((6, 3)):
            position = first + step
            assert chain.positions[step, request] == position
            assert attended(chain, step, request) == [place(request, p) for p in range(position + 1)]
            block, offset = place(request, position)
            assert chain.slots[step, request] == block * BLOCK + offset
    assert chain.max_seq_lens == [7, 8, 9]
    assert chain.seq_lens.dtype == torch.int32


@pytest.mark.parametrize("window", [None, AttentionWindow(num_tokens=4, num_sink_tokens=1)])
def test_beyond_its_own_blocks_a_request_writes_nothing(window):
    chain = plan([6, 7], [32, 8], window=window)
    assert chain.slots[:, 1].tolist() == [21 * BLOCK + 3, PADDING, PADDING]
    assert chain.seq_lens[1:, 1].tolist() == [1, 1]
    assert chain.positions[1:, 1].tolist() == [0, 0]
    assert 99 not in [block for step in range(3) for block, _ in attended(chain, step, 1)]
    assert (chain.slots[:, 0] >= 0).all()


@pytest.mark.parametrize("num_computed", range(1, 30))
@pytest.mark.parametrize("window", [AttentionWindow(5, 3), AttentionWindow(1, 1), AttentionWindow(9, 6)])
def test_a_window_reads_the_first_and_the_last_tokens_in_order_and_ends_at_its_own(num_computed, window):
    chain = plan([num_computed], [32], window=window)
    for step in range(3):
        position = num_computed + step
        read = attended(chain, step, 0)
        everything = [place(0, p) for p in range(position + 1)]
        assert read == [token for token in everything if token in set(read)]
        assert set(everything[: window.num_sink_tokens]) <= set(read)
        assert set(everything[max(0, position + 1 - window.num_tokens) :]) <= set(read)
        assert read[-1] == place(0, position)
        num_most = -(-window.num_sink_tokens // BLOCK) * BLOCK + window.num_tokens + BLOCK + 2
        assert len(read) <= num_most
