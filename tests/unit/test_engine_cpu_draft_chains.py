"""A draft pass reads what it should and writes only into its own request's slots."""

import pytest

pytest.importorskip("vllm", reason="the windows' blocks are vLLM's")

import torch

from efficient_rollout.engine.cpu.draft_attention import AttentionWindow, DraftRows, DraftTables

BLOCK = 4
# Block numbers of two requests.
TABLE = torch.tensor([[10, 11, 12, 13, 14, 15, 16, 17], [20, 21, 22, 23, 24, 25, 26, 27]], dtype=torch.int32)


def tables(num_computed, window=None, most_drafts=3):
    return DraftTables.of(torch.tensor(num_computed), most_drafts, TABLE, BLOCK, window)


def attended(made, request, position):
    """(block, offset) of every token that a row at this position reads, in order."""
    num_tokens = position + 1 - made.num_skipped[request]
    return [(made.read_from[request, t // BLOCK].item(), t % BLOCK) for t in range(num_tokens)]


def place(request, position):
    return TABLE[request, position // BLOCK].item(), position % BLOCK


def test_rows_of_requests_are_in_order_with_one_position_after_another():
    rows = DraftRows.of([0, 2, 3], [6, 3, 9], [2, 1, 3])
    assert rows.requests_of_rows.tolist() == [0, 0, 2, 3, 3, 3]
    assert rows.positions.tolist() == [6, 7, 3, 9, 10, 11]
    assert rows.starts.tolist() == [0, 2, 3, 6]
    assert rows.starts.dtype == torch.int32
    assert rows.last_positions.tolist() == [7, 3, 11]
    assert rows.most_rows == 3


def test_each_row_writes_into_its_own_request_s_slot():
    made = tables([6, 3])
    rows = DraftRows.of([0, 1], [6, 3], [3, 2])
    expected = [place(0, 6), place(0, 7), place(0, 8), place(1, 3), place(1, 4)]
    assert made.slots(rows).tolist() == [block * BLOCK + offset for block, offset in expected]
    assert attended(made, 1, 4) == [place(1, p) for p in range(5)]


@pytest.mark.parametrize("num_computed", range(1, 29))
@pytest.mark.parametrize("window", [AttentionWindow(5, 3), AttentionWindow(1, 1), AttentionWindow(9, 6)])
def test_a_window_reads_the_first_and_the_last_tokens_in_order_and_ends_at_its_own(num_computed, window):
    made = tables([num_computed, 1], window)
    for step in range(3):
        position = num_computed + step
        read = attended(made, 0, position)
        everything = [place(0, p) for p in range(position + 1)]
        assert read == [token for token in everything if token in set(read)]
        assert set(everything[: window.num_sink_tokens]) <= set(read)
        assert set(everything[max(0, position + 1 - window.num_tokens) :]) <= set(read)
        assert read[-1] == place(0, position)
        num_most = -(-window.num_sink_tokens // BLOCK) * BLOCK + window.num_tokens + BLOCK + 2
        assert len(read) <= num_most
