"""Speculation changes no token's distribution: through a real engine, against exact probabilities.

That seeded tokens equal stock's (test_same_samples.py) is the sharper test; this one needs nothing of stock.
"""

import engine_support
import pytest
from lossless_support import (
    DRAFTERS,
    FALSE_ALARM_RATE,
    KERNEL,
    LONG_PROMPT,
    NUM_SAMPLES,
    OFF,
    PROMPT,
    SHIFT,
    Sampling,
    drafting_with,
    faulty_engine,
    sample_pairs,
)

from efficient_rollout.engine.statistics import take_rollout_stats
from efficient_rollout.gpu_check.distribution import joint_of_second_and_third, p_value, smallest_power

pytestmark = [pytest.mark.engine, pytest.mark.slow]

CONDITIONS = {
    "temperature-1": (Sampling(), {}),
    "temperature-0.7": (Sampling(temperature=0.7), {}),
    "top-k": (Sampling(top_k=20), {}),
    "top-p": (Sampling(top_p=0.8), {}),
    "seed": (Sampling(), {"seed": 1234}),
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return engine_support.random_policy(tmp_path_factory.mktemp("policy"), spread=0.12)


@pytest.fixture(scope="module")
def engine(policy):
    with faulty_engine(policy, {"verify_kernel": KERNEL}, enable_prefix_caching=True) as engine:
        yield engine


@pytest.mark.parametrize("condition", CONDITIONS)
def test_joint_distribution_is_exact(engine, policy, condition):
    sampling, extra = CONDITIONS[condition]
    joint = joint_of_second_and_third(policy, PROMPT, sampling)
    assert smallest_power(joint, NUM_SAMPLES, SHIFT, FALSE_ALARM_RATE) > 0.95
    take_rollout_stats(engine.collective_rpc)
    drafted = p_value(sample_pairs(engine, sampling, extra, [1]), joint)
    stats = take_rollout_stats(engine.collective_rpc)
    assert 0.1 * NUM_SAMPLES < stats.num_accepted_tokens < 0.95 * stats.num_draft_tokens
    plain = p_value(sample_pairs(engine, sampling, extra, OFF, NUM_SAMPLES // 3), joint)
    assert plain > FALSE_ALARM_RATE, "the exact distribution is not that of plain decoding"
    assert drafted > FALSE_ALARM_RATE


@pytest.fixture
def drafter(request, engine, policy):
    with drafting_with(engine, policy, DRAFTERS[request.param]):
        yield request.param


@pytest.mark.parametrize("drafter", DRAFTERS, indirect=True)
def test_every_drafter_is_lossless(engine, policy, drafter):
    take_rollout_stats(engine.collective_rpc)
    prompt = LONG_PROMPT if drafter == "window" else PROMPT
    joint = joint_of_second_and_third(policy, prompt, Sampling())
    num_samples = NUM_SAMPLES // 2
    assert smallest_power(joint, num_samples, 1.5 * SHIFT, FALSE_ALARM_RATE) > 0.95
    pairs = sample_pairs(engine, Sampling(), {}, [1], num_samples, prompt)
    assert p_value(pairs, joint) > FALSE_ALARM_RATE
    stats = take_rollout_stats(engine.collective_rpc)
    assert 0.1 * num_samples < stats.num_accepted_tokens < stats.num_draft_tokens, "both outcomes must have happened"


# After the first token, 4 more leave room for 3 drafts; 2 more cut every chain to one.
@pytest.mark.parametrize("num_tokens", [5, 3], ids=["whole-chains", "cut-at-the-end"])
def test_joint_distribution_is_exact_while_toggling_with_longer_drafts(engine, policy, num_tokens):
    joint = joint_of_second_and_third(policy, PROMPT, Sampling())
    take_rollout_stats(engine.collective_rpc)
    # A pattern of another length than responses of three tokens take: in step with it, all of them might draft nothing.
    pairs = sample_pairs(engine, Sampling(), {}, [3, 0, 2, 2], NUM_SAMPLES // 3, num_tokens=num_tokens)
    longest = len(take_rollout_stats(engine.collective_rpc).drafted_per_position)
    assert longest == num_tokens - 2
    assert p_value(pairs, joint) > FALSE_ALARM_RATE


def test_a_broken_acceptance_is_noticed(engine, policy):
    joint = joint_of_second_and_third(policy, PROMPT, Sampling())
    engine.collective_rpc("set_fault", args=("credulous",))
    engine.collective_rpc("scramble_drafter", args=(3,))
    try:
        assert p_value(sample_pairs(engine, Sampling(), {}, [1]), joint) < FALSE_ALARM_RATE
    finally:
        engine.collective_rpc("set_fault", args=(None,))
        engine.collective_rpc("sync_from", args=(str(policy),))
        engine.reset_prefix_cache()
