"""After a weight sync the policy and the drafter carry the new weights, every one of them."""

import engine_support
import file_transfer
import pytest
from weight_support import DOORS, fingerprints, logprobs, status, sync, through_buckets

from efficient_rollout.drafter import columns
from efficient_rollout.drafter.cpu.native.library import native_missing
from efficient_rollout.engine.statistics import take_rollout_stats

pytestmark = pytest.mark.engine

DRAFTING = {"drafter": {"scheme": "int8"}, "controller": {"rule": "always", "max_draft_tokens": 3}}
CLASSES = {"worker_cls": "scripted_engine.FaultyWorker"}
# Between them: biases, norms (also of q and k), tied and untied output heads, several dtypes' worth of packing.
POLICIES = {
    "qwen3-untied": {"tied": False},
    "qwen3-tied": {"tied": True},
    "qwen2-tied-with-biases": {"tied": True, "biases": True},
}
# Both ways a policy's own layers are packed, and with each a tied head.
KERNELS = {
    "qwen3-untied": "stock",
    "qwen3-tied": "stock",
    "qwen2-tied-with-biases": "auto" if native_missing() else "native",
}


@pytest.fixture(scope="module", params=POLICIES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def policies(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp(case)
    return [engine_support.random_policy(folder / str(seed), seed=seed, **POLICIES[case]) for seed in (0, 1)]


@pytest.fixture(scope="module")
def settings(case):
    return {**DRAFTING, "verify_kernel": KERNELS[case]}


@pytest.fixture(scope="module")
def of_a_fresh_engine(policies, settings):
    """Log-probabilities and drafter fingerprints of an engine started on the new weights."""
    with engine_support.running(policies[1], settings, **CLASSES) as engine:
        return logprobs(engine), fingerprints(engine)


@pytest.fixture(scope="module")
def engine(policies, settings, of_a_fresh_engine):
    transfer = {"weight_transfer_config": {"backend": file_transfer.BACKEND}}
    with engine_support.running(policies[0], settings, **CLASSES, **transfer) as engine:
        yield engine


@pytest.mark.parametrize("door", DOORS)
def test_engine_equals_a_fresh_one_after_a_sync(engine, policies, of_a_fresh_engine, door):
    fresh_logprobs, fresh_fingerprints = of_a_fresh_engine
    sync(engine, policies[0])
    assert logprobs(engine) != fresh_logprobs
    before = fingerprints(engine)
    assert not set(before.items()) & set(fresh_fingerprints.items()), "every layer's weights must differ before"
    take_rollout_stats(engine.collective_rpc)
    version = status(engine)["weights_version"]
    sync(engine, policies[1], DOORS[door])
    assert logprobs(engine) == fresh_logprobs
    assert fingerprints(engine) == fresh_fingerprints
    assert (status(engine)["weights_version"], status(engine)["weights_fault"]) == (version + 1, None)
    stats = take_rollout_stats(engine.collective_rpc)
    assert (stats.num_weight_syncs, stats.proven_weight_share, stats.is_as_sent) == (1, 1.0, 0)
    assert stats.weights_checksum == checksum_of(policies[1]) != checksum_of(policies[0])
    assert 0 < stats.requantize_seconds < stats.weight_sync_seconds
    assert stats.num_accepted_tokens > 0.7 * stats.num_draft_tokens


def checksum_of(path):
    """What anybody can compute of a checkpoint."""
    return sum(int(columns.checksum(*named)) for named in file_transfer.tensors(path)) % 10**9


def test_a_row_of_the_policy_that_is_not_what_came_ends_the_sync(engine, policies, of_a_fresh_engine):
    with pytest.raises(
        Exception, match=r"computes with other values than came, in 1 columns: .* \(column \d+\), 1 val"
    ):
        engine.collective_rpc("sync_with_a_row_flipped", args=(str(policies[0]), "policy"))
    assert "generates nothing: begin again" in status(engine)["weights_fault"]
    sync(engine, policies[1])
    assert (logprobs(engine), fingerprints(engine)) == of_a_fresh_engine


def test_a_tied_head_that_was_not_packed_again_ends_the_sync(engine, policies, of_a_fresh_engine, case):
    if not POLICIES[case]["tied"]:
        pytest.skip("this policy's head has a tensor of its own")
    with pytest.raises(Exception, match=r"computes with other values than came, in 1 columns: model.embed_tokens"):
        engine.collective_rpc("sync_with_a_stale_head", args=(str(policies[0]),))
    sync(engine, policies[1])
    assert (logprobs(engine), fingerprints(engine)) == of_a_fresh_engine


def test_a_row_of_the_drafter_that_is_not_the_policy_s_turns_it_off(engine, policies, of_a_fresh_engine):
    engine.collective_rpc("sync_with_a_row_flipped", args=(str(policies[1]), "drafter"))
    assert "1 of its 9 layers are not the policy's, quantized: " in status(engine)["drafter_fault"]
    assert status(engine)["weights_fault"] is None
    sync(engine, policies[1])
    assert status(engine)["drafter_fault"] is None
    assert (logprobs(engine), fingerprints(engine)) == of_a_fresh_engine


def test_a_second_and_third_sync_work_like_the_first(engine, policies, of_a_fresh_engine):
    sync(engine, policies[0])
    assert logprobs(engine) != of_a_fresh_engine[0]
    sync(engine, policies[1])
    assert (logprobs(engine), fingerprints(engine)) == of_a_fresh_engine


def test_a_stale_drafter_is_noticed_and_costs_no_token(engine, policies, of_a_fresh_engine):
    engine.collective_rpc("scramble_drafter", args=(3,))
    take_rollout_stats(engine.collective_rpc)
    for _ in range(4):
        assert [[sorted(p)[0][0] for p in text] for text in logprobs(engine)] == [
            [sorted(p)[0][0] for p in text] for text in of_a_fresh_engine[0]
        ]
    stats = take_rollout_stats(engine.collective_rpc)
    assert stats.num_stale_drafters == 1
    assert stats.ticks_by_reason["drafter_stale"] > 0
    # Nobody but the worker tells the scheduler.
    through_buckets(engine, policies[1])
    assert logprobs(engine) == of_a_fresh_engine[0]
    stats = take_rollout_stats(engine.collective_rpc)
    assert stats.num_stale_drafters == 0
    assert stats.num_draft_tokens > 0
