"""Where draft steps that look copies up write KV: never before a chain's first token, where the policy's own is."""

from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="the CUDA path's tests need Triton: bash scripts/install.sh --triton")
pytest.importorskip("vllm", reason="vLLM is not installed")

import torch

from efficient_rollout.engine.gpu.chain import LookupSteps


def test_rows_before_a_chain_write_nowhere():
    """Of a request near the model's last position; of one far from it, every row has a slot."""
    most_tokens, rows = 20, 4
    buffers = SimpleNamespace(
        positions=torch.zeros(8, dtype=torch.int64), query_start_loc=torch.zeros(3, dtype=torch.int32),
        input_ids=torch.zeros(8, dtype=torch.int32), seq_lens=torch.zeros(2, dtype=torch.int32),
    )  # fmt: skip
    states = SimpleNamespace(all_token_ids=SimpleNamespace(gpu=torch.zeros(2, most_tokens, dtype=torch.int32)))
    tables = SimpleNamespace(compute_slot_mappings=lambda *_: torch.stack([buffers.positions, 100 + buffers.positions]))
    speculator = SimpleNamespace(
        max_num_reqs=2, max_num_tokens=64, num_speculative_steps=8, max_model_len=most_tokens, vocab_size=9,
        device=torch.device("cpu"), input_buffers=buffers, block_tables=tables, idx_mapping=torch.tensor([0, 1]),
        draft_tokens=torch.zeros(2, 8, dtype=torch.int64), runner=SimpleNamespace(req_states=states),
        vllm_config=SimpleNamespace(compilation_config=SimpleNamespace(max_cudagraph_capture_size=None)),
    )  # fmt: skip
    steps = LookupSteps(speculator, rows - 1)
    batch = SimpleNamespace(num_reqs=2, seq_lens=torch.tensor([18, 9]), idx_mapping=torch.tensor([0, 1]))
    steps.begin(batch, torch.tensor([0, 3]), torch.tensor([[1], [2]]))
    assert buffers.positions.tolist() == [16, 17, 18, 19, 6, 7, 8, 9]
    assert steps.slots(2, 8).tolist() == [
        [-1, -1, 18, 19, 6, 7, 8, 9],
        [-1, -1, 118, 119, 106, 107, 108, 109],
    ]
    assert buffers.query_start_loc.tolist() == [0, 4, 8]
    assert steps.states_of_rows(8).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
