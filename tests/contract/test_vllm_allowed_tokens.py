"""vLLM's own batch, with the ledger applied: what a request may sample goes with it, and is gone with it."""

import pytest
import torch

from efficient_rollout.engine import ledger

VOCABULARY = 16


@pytest.fixture
def batch():
    """Four requests; those called after tokens may sample these alone, "any" may sample every token."""
    from vllm import SamplingParams
    from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

    ledger.apply()
    batch = InputBatch(
        max_num_reqs=8,
        max_model_len=32,
        max_num_batched_tokens=64,
        device=torch.device("cpu"),
        vocab_size=VOCABULARY,
        block_sizes=[32],
        kernel_block_sizes=[32],
        max_num_blocks_per_req=[1],
    )
    for request_id, allowed in (("1", [1]), ("2", [2]), ("any", None), ("3", [3])):
        state = CachedRequestState(
            req_id=request_id,
            prompt_token_ids=[5, 6],
            mm_features=[],
            sampling_params=SamplingParams(allowed_token_ids=allowed),
            generator=None,
            block_ids=([0],),
            num_computed_tokens=0,
            output_token_ids=[],
        )
        batch.add_request(state)
    return batch


def allowed(batch):
    """Tokens that may be sampled, by request; None for all."""
    batch.refresh_metadata()
    mask = batch.sampling_metadata.allowed_token_ids_mask
    tokens = [torch.nonzero(~row).flatten().tolist() for row in mask]
    return {r: None if len(t) == VOCABULARY else t for r, t in zip(batch.req_ids, tokens, strict=True)}


def test_requests_that_change_places_keep_what_they_may_sample(batch):
    batch.condense()
    batch.swap_states(0, 2)
    batch.swap_states(1, 3)
    assert batch.req_ids == ["any", "3", "1", "2"]
    assert allowed(batch) == {"any": None, "3": [3], "1": [1], "2": [2]}


def test_rows_behind_the_batch_bind_no_request_that_comes_later(batch):
    batch.remove_request("1")
    batch.condense()
    assert allowed(batch) == {"3": [3], "2": [2], "any": None}
    assert not batch.allowed_token_ids_mask_cpu_tensor[batch.num_reqs :].any()


def test_rows_of_an_emptied_batch_bind_no_request_that_comes_later(batch):
    for request_id in ("1", "2", "any", "3"):
        batch.remove_request(request_id)
    batch.condense()
    assert not batch.allowed_token_ids_mask_cpu_tensor.any()
