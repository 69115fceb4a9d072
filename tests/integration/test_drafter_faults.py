"""A fault of the drafter turns drafting off in that engine; every request goes on, unchanged, and the stats say so."""

import engine_support
import pytest

from efficient_rollout.engine.statistics import take_rollout_stats

pytestmark = pytest.mark.engine

PROMPTS = [[3 + i, 40 + i, 9] for i in range(8)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return engine_support.random_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def engine(policy):
    settings = {"drafter": {"scheme": "int8"}, "controller": {"rule": "always", "max_draft_tokens": 3}}
    with engine_support.running(policy, settings, worker_cls="scripted_engine.FaultyWorker") as engine:
        yield engine


def texts(engine, temperature=0.0):
    outputs = engine_support.generate(engine, PROMPTS, temperature=temperature, seed=1, max_tokens=40)
    return [output.token_ids for (output,) in outputs]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("mode", ["raise", "nan"])
def test_a_fault_while_drafting_loses_no_sample(engine, mode, temperature):
    healthy = texts(engine, temperature)
    take_rollout_stats(engine.collective_rpc)
    engine.collective_rpc("set_fault", args=(mode,))
    faulty = texts(engine, temperature)
    stats = take_rollout_stats(engine.collective_rpc)
    status = engine.collective_rpc("plugin_status")[0]
    engine.collective_rpc("set_fault", args=(None,))
    engine.reset_prefix_cache()
    assert [len(text) for text in faulty] == [40] * len(PROMPTS)
    if temperature == 0.0:
        assert faulty == healthy
    assert stats.num_drafter_faults == 1
    assert stats.num_draft_tokens == 0
    assert stats.ticks_by_reason["drafter_fault"] >= 38
    assert ("deliberate fault" if mode == "raise" else "not numbers") in status["drafter_fault"]


def test_memory_that_cannot_be_had_for_requantizing_leaves_the_policy_synced(engine, policy):
    expected = texts(engine)
    engine.collective_rpc("fail_requantizing", kwargs={"fail": True})
    take_rollout_stats(engine.collective_rpc)
    engine.collective_rpc("sync_from", args=(str(policy),))
    engine.reset_prefix_cache()
    assert texts(engine) == expected
    stats = take_rollout_stats(engine.collective_rpc)
    assert stats.num_drafter_faults == 1
    assert stats.num_draft_tokens == 0
    assert stats.ticks_by_reason["drafter_fault"] >= 38, "the scheduler must stop asking"
    engine.collective_rpc("fail_requantizing", kwargs={"fail": False})
    engine.collective_rpc("sync_from", args=(str(policy),))
    engine.reset_prefix_cache()
    assert texts(engine) == expected
    assert take_rollout_stats(engine.collective_rpc).num_draft_tokens > 0, "the next sync turns drafting on again"
