"""What a request asks of stock vLLM, a drafting engine gives it: the same tokens, text and reasons, or distribution."""

from collections import Counter

import engine_support
import pytest
from custom_processor import MULTIPLES_OF
from lossless_support import Sampling

from efficient_rollout.engine.statistics import take_rollout_stats
from efficient_rollout.gpu_check.distribution import joint_of_second_and_third, p_value, smallest_power

pytestmark = pytest.mark.engine

VOCABULARY = 128
PROMPTS = [[8 + (5 * i) % 90, 9 + (11 * i) % 80, 40 + i, 17] for i in range(12)]
# Longer than the drafting engines' ticks, which are also too small for twelve requests with drafts.
LONG_PROMPT = [7 + (13 * i) % 110 for i in range(200)]
SMALL_TICKS = {"max_num_batched_tokens": 56, "max_num_seqs": 24}
GREEDY = {"max_tokens": 40, "logprobs": 0, "detokenize": True}
ROUNDING = 2e-4
FALSE_ALARM_RATE = 1e-3

REQUESTS = {
    "plain": {},
    "stop-ids": {"stop_token_ids": list(range(20, 32))},
    "stop-ids-after-min-tokens": {"stop_token_ids": list(range(20, 32)), "min_tokens": 9},
    "end-of-text": {"ignore_eos": False, "logit_bias": {2: 4.0}},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 1.2},
    "repetition": {"repetition_penalty": 1.6},
    "bad-words": {"bad_words": ["a", "bc", "="]},
    "allowed": {"allowed_token_ids": list(range(40, 60))},
    "all-penalties": {"presence_penalty": 0.7, "repetition_penalty": 1.2, "allowed_token_ids": list(range(8, 90))},
    "bias": {"logit_bias": {50: 3.0, 51: -5.0}},
    "min-p": {"min_p": 0.2},
    "custom": {"extra_args": {MULTIPLES_OF: 3}},
}
# Where two tokens of a response on this policy are 4e-7 apart, which falls either way from one processor to another.
TIES = {"all-penalties": 25}
# Of these every draft of an unquantized drafter must be accepted: it draws from what the policy draws from.
DRAFTED = [name for name in REQUESTS if not name.startswith(("stop", "end"))]
PROCESSORS = {"logits_processors": ["custom_processor:MultiplesProcessor"], "skip_tokenizer_init": False}
STOPS = ("one", "two", "kept-in-text", "after-min-tokens", "pairs", "pairs-after-min-tokens")


def stops(texts):
    """Stop strings that occur: the commonest characters, and of two characters each, at least one in every response."""
    first, second, third = (character for character, _ in Counter("".join(texts)).most_common(3))
    pairs = [text[10:12] for text in texts]
    params = [
        {"stop": [first]},
        {"stop": [second, third]},
        {"stop": [first, second], "include_stop_str_in_output": True},
        {"stop": [first, second], "min_tokens": 7},
        {"stop": pairs},
        {"stop": pairs, "min_tokens": 12},
    ]
    return dict(zip(STOPS, params, strict=True))


def completions(engine, prompts=PROMPTS, **params):
    return [
        (
            list(output.token_ids),
            [position[token].logprob for token, position in zip(output.token_ids, output.logprobs, strict=True)],
            output.text,
            output.finish_reason,
            output.stop_reason,
        )
        for (output,) in engine_support.generate(engine, prompts, **{**GREEDY, **params})
    ]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    from efficient_rollout.tasks.tokenizer import VOCAB_SIZE, build_tokenizer

    assert VOCAB_SIZE == VOCABULARY
    path = engine_support.random_policy(tmp_path_factory.mktemp("policy"), spread=0.14)
    build_tokenizer(512).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def stock(policy):
    """Completions by request, of stock vLLM without a trace of this package in its arguments; prompts in one tick."""
    with engine_support.running(policy, None, **PROCESSORS) as engine:
        facts = {name: completions(engine, **params) for name, params in REQUESTS.items()}
        facts["texts"] = [text for _, _, text, _, _ in facts["plain"]]
        for name, params in stops(facts["texts"]).items():
            facts[f"stop-{name}"] = completions(engine, **params)
        facts["seeded"] = completions(engine, PROMPTS[:6], seed=5, temperature=1.0)
        facts["long-prompt"] = completions(engine, [LONG_PROMPT], seed=3, temperature=1.0)
    return facts


@pytest.fixture(scope="module")
def plain_engine_seeded(policy, stock):
    """Of an engine of this package that drafts nothing, whose ticks are smaller than the prompt."""
    with engine_support.running(policy, {"enabled": False}, **PROCESSORS, **SMALL_TICKS) as engine:
        return completions(engine, [LONG_PROMPT], seed=3, temperature=1.0)


@pytest.fixture(scope="module")
def engine(policy, plain_engine_seeded):
    settings = {"drafter": {"scheme": "unquantized"}, "controller": {"rule": "always", "max_draft_tokens": 4}}
    with engine_support.running(policy, settings, disable_log_stats=False, **PROCESSORS, **SMALL_TICKS) as engine:
        # An engine's very first requests: what the runner keeps of a batch was never put in order yet.
        completions(engine, **REQUESTS["all-penalties"], **REQUESTS["bad-words"])
        stats = take_rollout_stats(engine.collective_rpc)
        assert stats.num_drafter_faults == 0
        assert stats.num_accepted_tokens == stats.num_draft_tokens > 100
        yield engine


def assert_equal(ours, theirs):
    for (tokens, logprobs, *rest), (expected, expected_logprobs, *expected_rest) in zip(ours, theirs, strict=True):
        assert tokens == expected
        assert logprobs == pytest.approx(expected_logprobs, abs=ROUNDING)
        assert rest == expected_rest


@pytest.mark.parametrize("request_name", REQUESTS)
def test_greedy_completions_equal_stock(engine, stock, request_name):
    ours, theirs = completions(engine, **REQUESTS[request_name]), stock[request_name]
    if request_name in TIES:
        end = TIES[request_name]
        ours, theirs = ([(fact[0][:end], fact[1][:end]) for fact in facts] for facts in (ours, theirs))
    assert_equal(ours, theirs)


@pytest.mark.parametrize("stop", STOPS)
def test_stop_strings_end_responses_where_stock_ends_them(engine, stock, stop):
    expected = stock[f"stop-{stop}"]
    assert sum(reason == "stop" for *_, reason, _ in expected) >= 3, "the stop strings must occur"
    take_rollout_stats(engine.collective_rpc)
    assert_equal(completions(engine, **stops(stock["texts"])[stop]), expected)
    assert take_rollout_stats(engine.collective_rpc).num_accepted_tokens > 0


def spec_decode_counters(engine):
    """vLLM's own, of draft tokens and of those accepted."""
    values = {metric.name: getattr(metric, "value", None) for metric in engine.get_metrics()}
    return [values[f"vllm:spec_decode_num_{name}_tokens"] for name in ("draft", "accepted")]


def test_accepted_drafts_are_those_that_requests_gained(engine):
    take_rollout_stats(engine.collective_rpc)
    before = spec_decode_counters(engine)
    found = completions(engine, PROMPTS[:4], **REQUESTS["stop-ids"])
    stats = take_rollout_stats(engine.collective_rpc)
    num_tokens = sum(len(tokens) for tokens, *_ in found)
    assert all(len(tokens) < GREEDY["max_tokens"] - 5 for tokens, *_ in found), "responses must end by themselves"
    # The first token of each response, one of every verify pass behind it, and what drafts added.
    assert num_tokens == len(found) + stats.num_verify_passes + stats.num_accepted_tokens
    assert stats.num_generated_tokens == num_tokens
    # Every draft stands, so that what no request got lay behind an end.
    assert sum(stats.behind_end_per_position) == stats.num_draft_tokens - stats.num_accepted_tokens > 0
    assert spec_decode_counters(engine) == [
        old + new for old, new in zip(before, (stats.num_draft_tokens, stats.num_accepted_tokens), strict=True)
    ]


def test_several_sampled_responses_each_end_behind_their_stop_string(engine, stock):
    given = {"n": 24, "temperature": 1.0, "max_tokens": 60, "stop": ["=", "a", "b"]}
    take_rollout_stats(engine.collective_rpc)
    (outputs,) = engine_support.generate(engine, PROMPTS[:1], **GREEDY | given)
    assert take_rollout_stats(engine.collective_rpc).num_accepted_tokens > 0
    tokenizer = engine.get_tokenizer()
    stopped = [output for output in outputs if output.finish_reason == "stop"]
    assert len(stopped) > 4
    for output in stopped:
        decoded = tokenizer.decode(output.token_ids, skip_special_tokens=True)
        assert decoded == output.text + output.stop_reason
        assert len(output.logprobs) == len(output.token_ids)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("request_name", DRAFTED)
def test_drafts_go_through_the_requests_own_processing(engine, request_name, temperature):
    take_rollout_stats(engine.collective_rpc)
    completions(engine, **{**REQUESTS[request_name], "temperature": temperature})
    stats = take_rollout_stats(engine.collective_rpc)
    assert stats.num_draft_tokens > 200
    assert stats.num_accepted_tokens == stats.num_draft_tokens


def test_one_kind_of_request_does_not_turn_drafting_off_for_the_others(engine, stock):
    take_rollout_stats(engine.collective_rpc)
    kinds = ["plain", "allowed", "bias", "repetition", "custom", "bad-words"]
    params = [engine_support.sampling(**GREEDY, **REQUESTS[kinds[i % 6]]) for i in range(12)]
    outputs = engine_support.generate(engine, PROMPTS, params)
    for i, (output,) in enumerate(outputs):
        assert list(output.token_ids) == stock[kinds[i % 6]][i][0], kinds[i % 6]
    stats = take_rollout_stats(engine.collective_rpc)
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 200
    assert stats.num_stale_drafters == 0
    assert set(stats.ticks_by_reason) <= {"always", "idle"}


def word(longest):
    return {"efficient_rollout": {"max_draft_tokens": longest}}


def test_a_request_is_drafted_for_as_far_as_it_wants(engine, stock):
    wanted = [0, 1, 2, 3, 4, None]
    take_rollout_stats(engine.collective_rpc)
    common = {**GREEDY, "seed": 5, "temperature": 1.0}
    params = [engine_support.sampling(**common, extra_args=None if most is None else word(most)) for most in wanted]
    responses = engine_support.generate(engine, PROMPTS[:6], params)
    assert [list(output.token_ids) for (output,) in responses] == [tokens for tokens, *_ in stock["seeded"]]
    stats = take_rollout_stats(engine.collective_rpc)
    # All of a pass's drafts stand: behind the first token, each pass emits one more than it verifies.
    left = GREEDY["max_tokens"] - 1
    passes = [-(-left // ((4 if most is None else most) + 1)) for most in wanted]
    assert stats.num_draft_tokens == stats.num_accepted_tokens == sum(left - number for number in passes)
    # One whose last token is alone has a pass without drafts, and one that wants none has no other.
    assert stats.num_verify_passes == sum(passes[1:]) - 1


def test_where_no_request_wants_drafts_a_tick_is_a_plain_one(engine, stock):
    take_rollout_stats(engine.collective_rpc)
    ours = completions(engine, PROMPTS[:6], seed=5, temperature=1.0, extra_args=word(0))
    assert_equal(ours, stock["seeded"])
    stats = take_rollout_stats(engine.collective_rpc)
    assert (stats.draft_seconds, stats.num_draft_tokens, stats.num_speculative_ticks) == (0.0, 0, 0)
    assert stats.ticks_by_reason["unwanted"] > GREEDY["max_tokens"] - 2
    assert set(stats.ticks_by_reason) <= {"unwanted", "idle"}


@pytest.mark.parametrize("wrong", [5, -1, True, 2.0, "2"])
def test_a_word_that_is_none_is_the_requests_own_fault_alone(engine, stock, wrong):
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=rf"from 0 \(no drafts\) to 4.*got {wrong!r}"):
        completions(engine, PROMPTS[:2], extra_args=word(wrong))
    assert_equal(completions(engine, PROMPTS[:2]), stock["plain"][:2])


BIASED = Sampling(bias=((50, 2.0), (51, -3.0)))


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(min_p=0.15), BIASED], ids=["min-p", "bias"])
def test_its_distribution_is_exact_beside_requests_that_are_drafted_for(engine, policy, sampling):
    num_samples = 4096
    joint = joint_of_second_and_third(policy, PROMPTS[0], sampling)
    assert smallest_power(joint, num_samples, 0.03, FALSE_ALARM_RATE) > 0.95
    common = {"temperature": 1.0, "max_tokens": 3}
    bias = dict(sampling.bias) or None
    params = engine_support.sampling(n=num_samples, min_p=sampling.min_p, logit_bias=bias, **common)
    beside = engine_support.sampling(n=num_samples // 4, **common)
    take_rollout_stats(engine.collective_rpc)
    outputs, _ = engine_support.generate(engine, [PROMPTS[0], PROMPTS[1]], [params, beside])
    assert take_rollout_stats(engine.collective_rpc).num_draft_tokens > 0
    assert p_value([tuple(output.token_ids[1:3]) for output in outputs], joint) > FALSE_ALARM_RATE


def test_a_seeded_request_survives_a_prompt_of_several_ticks_and_its_noise_stands_still_meanwhile(
    engine, plain_engine_seeded, stock
):
    assert plain_engine_seeded[0][0] == stock["long-prompt"][0][0]
    twice = [completions(engine, [LONG_PROMPT], seed=3, temperature=1.0)[0][0] for _ in range(2)]
    assert len(twice[0]) == 40
    assert twice[0] == twice[1]


def test_no_drafter_work_while_only_prompts_are_computed(engine):
    take_rollout_stats(engine.collective_rpc)
    completions(engine, [LONG_PROMPT[1:], LONG_PROMPT[2:]], max_tokens=1)
    stats = take_rollout_stats(engine.collective_rpc)
    assert stats.ticks_by_reason["always"] >= 6, "the rule must have asked for drafts"
    assert (stats.draft_seconds, stats.num_draft_tokens) == (0.0, 0)
