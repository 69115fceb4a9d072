"""OpenRLHF's worker extension on a real engine: one parameter a call, and what becomes of a sync that goes wrong."""

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF has an environment of its own: bash scripts/install.sh --openrlhf")

import engine_support
import safetensors.torch
from weight_support import fingerprints, logprobs, status

from efficient_rollout.drafter import columns
from efficient_rollout.engine.statistics import take_rollout_stats

pytestmark = pytest.mark.openrlhf

SETTINGS = {"drafter": {"scheme": "int8"}, "controller": {"rule": "always", "max_draft_tokens": 3}}
CLASSES = {"worker_cls": "scripted_engine.FaultyWorker", "worker_extension_cls": "openrlhf_door.FromDisk"}


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    return [engine_support.random_policy(folder / str(seed), seed=seed, tied=True) for seed in (0, 1)]


@pytest.fixture(scope="module")
def of_a_fresh_engine(policies):
    engine = engine_support.start(policies[1], SETTINGS, **CLASSES)
    facts = logprobs(engine), fingerprints(engine)
    engine_support.stop(engine)
    return facts


@pytest.fixture(scope="module")
def engine(policies, of_a_fresh_engine):
    engine = engine_support.start(policies[0], SETTINGS, **CLASSES)
    yield engine
    engine_support.stop(engine)


def send(engine, path, *arguments):
    engine.collective_rpc("send", args=(str(path), *arguments))


def checksums(path):
    tensors = safetensors.torch.load_file(path / "model.safetensors")
    return [int(columns.checksum(name, tensor)) for name, tensor in tensors.items()]


def test_policy_and_drafter_follow_when_the_last_parameter_came(engine, policies, of_a_fresh_engine):
    assert logprobs(engine) != of_a_fresh_engine[0]
    take_rollout_stats(engine.collective_rpc)
    version = status(engine)["weights_version"]
    engine.collective_rpc("expect_checksums", args=(checksums(policies[1]),))
    send(engine, policies[1], 0, -1)
    assert status(engine)["weights_version"] == version
    assert "has not finished" in status(engine)["weights_fault"]
    send(engine, policies[1], -1)
    engine.reset_prefix_cache()
    assert (status(engine)["weights_version"], status(engine)["weights_fault"]) == (version + 1, None)
    assert (logprobs(engine), fingerprints(engine)) == of_a_fresh_engine
    stats = take_rollout_stats(engine.collective_rpc)
    assert (stats.num_weight_syncs, stats.is_as_sent) == (1, 1)
    assert stats.num_accepted_tokens > 0.7 * stats.num_draft_tokens


def test_a_sync_that_begins_in_another_is_refused_and_the_next_mends_it(engine, policies, of_a_fresh_engine, capfd):
    send(engine, policies[0], 0, 4)
    with pytest.raises(Exception):  # noqa: B017, PT011 - vLLM raises what it likes; the worker's own words follow
        send(engine, policies[0])
    assert "came a second time: a sync began before the one before it had ended" in status(engine)["weights_fault"]
    send(engine, policies[1])
    engine.reset_prefix_cache()
    assert (logprobs(engine), fingerprints(engine)) == of_a_fresh_engine


def test_weights_other_than_the_trainer_sent_are_refused(engine, policies, of_a_fresh_engine):
    engine.collective_rpc("expect_checksums", args=(checksums(policies[0]),))
    with pytest.raises(Exception):  # noqa: B017, PT011
        send(engine, policies[1])
    assert "the first whose checksum is not that of what was sent" in status(engine)["weights_fault"]
    send(engine, policies[1])
    engine.reset_prefix_cache()
    assert (logprobs(engine), fingerprints(engine)) == of_a_fresh_engine
    assert take_rollout_stats(engine.collective_rpc).is_as_sent == 0, "nobody told what would come"


def test_another_dtype_is_refused(engine, policies, of_a_fresh_engine):
    with pytest.raises(Exception):  # noqa: B017, PT011
        send(engine, policies[0], 0, 1, "bfloat16")
    assert "as torch.bfloat16, the engine has torch.float32" in status(engine)["weights_fault"]
    send(engine, policies[1])
    engine.reset_prefix_cache()
    assert (logprobs(engine), fingerprints(engine)) == of_a_fresh_engine
