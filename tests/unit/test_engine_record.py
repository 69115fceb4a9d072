"""What the ranks of an engine tell one another lies on the engine's device."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.schemes import make_scheme
from efficient_rollout.engine import record


@pytest.fixture
def packed(monkeypatch) -> PackedWeights:
    """Of the second of two ranks."""
    monkeypatch.setattr(record, "get_tensor_model_parallel_world_size", lambda: 2)
    monkeypatch.setattr(record, "get_tensor_model_parallel_rank", lambda: 1)
    monkeypatch.setattr(record, "tensor_model_parallel_all_reduce", lambda votes: votes)
    return PackedWeights(make_scheme(DrafterSettings(), "cpu"), quantize_output_head=True)


def test_votes_are_on_the_gpu_whose_collectives_take_them(packed):
    with FakeTensorMode():
        votes = record.Ranks(packed, torch.device("cuda")).votes()
    assert (votes.device.type, votes.shape) == ("cuda", (2,))


def test_a_fault_of_this_rank_is_its_vote(packed):
    chain = record.Ranks(packed)
    chain.begin()
    assert chain.votes().tolist() == [0.0, 0.0]
    chain.end()
    packed.product_faults.append("RuntimeError: no more")
    assert chain.votes().tolist() == [0.0, 1.0]
    with pytest.raises(record.DrafterFault, match="no more"):
        chain.end()
