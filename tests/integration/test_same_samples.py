"""A request samples the same tokens with drafting and without, alone and among others; with a seed, those of stock."""

import engine_support
import pytest
from lossless_support import (
    DRAFTERS,
    KERNEL,
    OFF,
    ON,
    ROUNDING,
    TOGGLING,
    assert_equal,
    drafting_with,
    facts,
    faulty_engine,
    greedy,
)
from scripted_engine import PATTERN

from efficient_rollout.drafter.cpu.native.library import native_missing
from efficient_rollout.engine.statistics import take_rollout_stats

pytestmark = pytest.mark.engine

VOCABULARY = 128
NUM_TOKENS = 40
PROMPTS = [[3 + i, 40 + 2 * i, 100 - i, 17] * (1 + i % 3) for i in range(32)]
PATTERNS = {"off": OFF, "on": ON, "toggling": TOGGLING, **{f"k={k}": [k] for k in (1, 2, 3)}}
SCHEMES = {**DRAFTERS, "unquantized": {"scheme": "unquantized"}}
CONDITIONS = {
    "temperature-1": {},
    "temperature-0.7": {"temperature": 0.7},
    "top-k": {"top_k": 20},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.05},
    "penalties": {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
    "min-tokens": {"min_tokens": 11, "stop_token_ids": list(range(20, 60))},
}


def sampled(engine, pattern, prompts=PROMPTS, *, seeds=True, first_seed=100, logprobs=VOCABULARY, **condition):
    """Responses at temperature 1 unless told, each request with a seed of its own."""
    given = {"temperature": 1.0, "max_tokens": NUM_TOKENS, "logprobs": logprobs, "extra_args": {PATTERN: pattern}}
    params = [
        engine_support.sampling(seed=first_seed + number if seeds else None, **{**given, **condition})
        for number in range(len(prompts))
    ]
    return [outputs[0] for outputs in engine_support.generate(engine, prompts, params)]


def gap(response, position, seed, tokens, temperature):
    """How far apart two tokens of a position are, in log-probability over noise."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for _ in range(position + 1):
        noise = torch.empty(VOCABULARY).exponential_(generator=generator)
    logprobs = response.logprobs[position]
    first, second = (logprobs[token].logprob / temperature - noise[token].log().item() for token in tokens)
    return abs(first - second)


def assert_same(ours, stock, *, first_seed=100, temperature=1.0):
    """Equal tokens, up to ties of rounding."""
    for number, (our, their) in enumerate(zip(ours, stock, strict=True)):
        pairs = list(zip(our.token_ids, their.token_ids, strict=False))
        different = [position for position, (token, expected) in enumerate(pairs) if token != expected]
        if different:
            position = different[0]
            apart = gap(their, position, first_seed + number, pairs[position], temperature)
            assert apart < ROUNDING, f"request {number}, position {position}: {pairs[position]}, {apart} apart"
        else:
            assert len(our.token_ids) == len(their.token_ids)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return engine_support.random_policy(tmp_path_factory.mktemp("policy"), spread=0.12)


@pytest.fixture(scope="module")
def stock(policy):
    """Of stock vLLM without speculation, and without a trace of this package in its arguments."""
    with engine_support.running(policy, None, max_logprobs=VOCABULARY) as engine:
        responses = {name: sampled(engine, OFF, **condition) for name, condition in CONDITIONS.items()}
        return responses | {"greedy": greedy(engine, OFF)}


@pytest.fixture(scope="module")
def engine(policy, stock):
    arguments = {"enable_prefix_caching": True, "max_logprobs": VOCABULARY}
    with faulty_engine(policy, {"verify_kernel": KERNEL}, **arguments) as engine:
        yield engine


ARMS = [
    *(("temperature-1", arm) for arm in PATTERNS),
    *((condition, arm) for condition in CONDITIONS for arm in ("off", "toggling") if condition != "temperature-1"),
]


@pytest.mark.parametrize(("condition", "arm"), ARMS)
def test_seeded_tokens_are_those_of_stock_without_speculation(engine, stock, condition, arm):
    take_rollout_stats(engine.collective_rpc)
    temperature = CONDITIONS[condition].get("temperature", 1.0)
    assert_same(sampled(engine, PATTERNS[arm], **CONDITIONS[condition]), stock[condition], temperature=temperature)
    stats = take_rollout_stats(engine.collective_rpc)
    if arm == "off":
        assert stats.num_draft_tokens == 0
    else:
        assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens, "both outcomes must have happened"


@pytest.mark.parametrize("arm", ["off", "on", "toggling"])
def test_greedy_tokens_and_logprobs_equal_stock(engine, stock, arm):
    engine.collective_rpc("take_num_prepared")
    take_rollout_stats(engine.collective_rpc)
    assert_equal(greedy(engine, PATTERNS[arm]), stock["greedy"])
    stats = take_rollout_stats(engine.collective_rpc)
    prepared = engine.collective_rpc("take_num_prepared")[0] / stats.num_ticks
    # Ticks without drafts prepare nothing for the drafter. One in seven of those that toggle has none to verify either.
    assert {"off": prepared == 0, "on": prepared == 1, "toggling": 0.5 < prepared < 1}[arm]
    if arm != "off":
        assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens, "both outcomes must have happened"


def test_alone_as_among_others(engine, stock):
    # And with its prompt's KV from the prefix cache.
    for number in (0, 5, 31):
        alone = sampled(engine, ON, PROMPTS[number : number + 1], first_seed=100 + number)
        assert_same(alone, stock["temperature-1"][number : number + 1], first_seed=100 + number)


@pytest.fixture
def drafter(request, engine, policy):
    with drafting_with(engine, policy, SCHEMES[request.param]):
        yield request.param


@pytest.mark.parametrize("drafter", SCHEMES, indirect=True)
def test_with_every_scheme(engine, stock, drafter):
    take_rollout_stats(engine.collective_rpc)
    assert_same(sampled(engine, ON), stock["temperature-1"])
    stats = take_rollout_stats(engine.collective_rpc)
    share = stats.num_accepted_tokens / stats.num_draft_tokens
    assert share == 1 if drafter == "unquantized" else 0.1 < share < 1


@pytest.mark.skipif(native_missing() is not None, reason="the native kernels need a CPU with AVX2")
@pytest.mark.parametrize("seeds", [True, False], ids=["seeds", "no-seeds"])
@pytest.mark.parametrize("condition", ["temperature-1", "top-p", "penalties"])
def test_drafting_changes_no_bit(engine, condition, seeds):
    def run(pattern):
        engine.collective_rpc("forget_requests")
        return facts(sampled(engine, pattern, seeds=seeds, logprobs=1, **CONDITIONS[condition]))

    never = run(OFF)
    assert run(ON) == never
    assert run(TOGGLING) == never


@pytest.mark.skipif(native_missing() is not None, reason="the native kernels need a CPU with AVX2")
def test_drafting_changes_no_bit_of_greedy_responses(engine):
    never = facts(greedy(engine, OFF))
    assert facts(greedy(engine, ON)) == never
    assert facts(greedy(engine, TOGGLING)) == never


@pytest.mark.skipif(native_missing() is not None, reason="the native kernels need a CPU with AVX2")
def test_greedy_and_sampled_requests_with_and_without_seeds_beside_each_other(engine):
    def run(pattern):
        engine.collective_rpc("forget_requests")
        given = {"temperature": 1.0, "logprobs": 1, "extra_args": {PATTERN: pattern}}
        kinds = [{"temperature": 0.0}, {"seed": 4}, {}, {"seed": 5, "top_k": 9}, {"temperature": 0.6, "min_p": 0.1}]
        params = [
            engine_support.sampling(max_tokens=4 + 3 * number, **{**given, **kinds[number % len(kinds)]})
            for number in range(20)
        ]
        return facts(outputs[0] for outputs in engine_support.generate(engine, PROMPTS[:20], params))

    assert run(TOGGLING) == run(OFF)


@pytest.mark.parametrize("lie", ["lie", "scrambled", "other-noise"])
def test_a_drafter_that_lies_changes_no_token(engine, policy, stock, lie):
    take_rollout_stats(engine.collective_rpc)
    if lie == "scrambled":
        engine.collective_rpc("scramble_drafter", args=(3,))
    else:
        engine.collective_rpc("set_fault", args=(lie,))
    try:
        assert_same(sampled(engine, ON), stock["temperature-1"])
    finally:
        engine.collective_rpc("set_fault", args=(None,))
        engine.collective_rpc("sync_from", args=(str(policy),))
        engine.reset_prefix_cache()
    stats = take_rollout_stats(engine.collective_rpc)
    assert stats.num_accepted_tokens < 0.5 * stats.num_draft_tokens


def test_a_verifier_that_believes_the_drafter_is_noticed(engine, stock):
    engine.collective_rpc("set_fault", args=("credulous",))
    try:
        with pytest.raises(AssertionError, match="apart"):
            assert_same(sampled(engine, ON), stock["temperature-1"])
    finally:
        engine.collective_rpc("set_fault", args=(None,))


def test_several_responses_to_one_prompt_have_noise_of_their_own(engine):
    (outputs,) = engine_support.generate(engine, PROMPTS[:1], n=16, seed=9, temperature=1.0, max_tokens=12)
    assert len({tuple(output.token_ids) for output in outputs}) > 12


def test_noise_ends_with_its_request(engine):
    sampled(engine, ON, seeds=True, logprobs=1)
    sampled(engine, OFF, seeds=False, logprobs=1, prompts=PROMPTS[:1])
    assert engine.collective_rpc("num_noise_streams") == [0]
