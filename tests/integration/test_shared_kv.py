"""One KV cache: the drafter reads and writes the policy's, and an unquantized drafter agrees with it always."""

import engine_support
import pytest

from efficient_rollout.engine.statistics import take_rollout_stats

pytestmark = pytest.mark.engine

PROMPTS = [[3 + i, 40 + i, 9] * (1 + i % 4) for i in range(16)]
WORKER = {"worker_cls": "scripted_engine.FaultyWorker"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return engine_support.random_policy(tmp_path_factory.mktemp("policy"), tied=True)


@pytest.fixture(scope="module")
def kv_cache_without_speculation(policy):
    with engine_support.running(policy, {"enabled": False}, **WORKER) as engine:
        return engine.collective_rpc("kv_cache_facts")[0]


@pytest.fixture(scope="module")
def engine(policy, kv_cache_without_speculation):
    drafter = {"scheme": "unquantized", "lookup": "group"}
    settings = {"drafter": drafter, "controller": {"rule": "always", "max_draft_tokens": 4}}
    # Few tokens a tick: long prompts are computed in chunks, beside requests that decode.
    with engine_support.running(policy, settings, max_num_batched_tokens=64, max_num_seqs=8, **WORKER) as engine:
        yield engine


def test_memory_for_kv_is_the_same_with_and_without_speculation(engine, kv_cache_without_speculation):
    num_blocks, num_bytes, num_layers = engine.collective_rpc("kv_cache_facts")[0]
    assert [num_blocks, num_bytes] == list(kv_cache_without_speculation[:2])
    assert num_layers == 2 * kv_cache_without_speculation[2], "the drafter's layers must be among those counted"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_unquantized_drafter_has_every_draft_accepted(engine, temperature):
    take_rollout_stats(engine.collective_rpc)
    engine_support.generate(engine, PROMPTS, temperature=temperature, max_tokens=60)
    stats = take_rollout_stats(engine.collective_rpc)
    assert stats.num_draft_tokens > 500
    assert stats.num_accepted_tokens == stats.num_draft_tokens
    assert stats.num_generated_tokens == 60 * len(PROMPTS)
    assert stats.drafter_bytes == 0


def test_copies_stand_and_save_passes_and_an_ended_response_saves_most(engine):
    def rolled_out():
        take_rollout_stats(engine.collective_rpc)
        given = {"temperature": 1.0, "seed": 5, "max_tokens": 60}
        ((output,),) = engine_support.generate(engine, [[11, 12, 13, 14]], **given)
        stats = take_rollout_stats(engine.collective_rpc)
        assert stats.num_accepted_tokens == stats.num_draft_tokens
        assert stats.num_copies >= stats.num_copies_kept
        return output.token_ids, stats

    (first, alone), (second, copying) = rolled_out(), rolled_out()
    assert first == second
    # An unquantized drafter draws what the policy does: of four drafts a tick three are copies of the response before.
    assert copying.num_copies_kept > 0.7 * copying.num_draft_tokens
    assert copying.num_draft_passes < 0.4 * alone.num_draft_passes
    assert alone.num_draft_passes <= alone.num_draft_tokens == alone.num_copies_kept + alone.num_draft_passes


def test_requests_that_reach_the_maximum_length_end_like_plain_ones(engine):
    outputs = engine_support.generate(engine, PROMPTS[:3], max_tokens=400)
    for prompt, (output,) in zip(PROMPTS, outputs, strict=False):
        assert len(prompt) + len(output.token_ids) == engine_support.ENGINE_LIMITS["max_model_len"]
        assert output.finish_reason == "length"


def test_no_request_is_given_more_drafts_than_it_may_emit(engine):
    def drafted(*max_tokens):
        take_rollout_stats(engine.collective_rpc)
        params = [engine_support.sampling(max_tokens=number) for number in max_tokens]
        outputs = engine_support.generate(engine, PROMPTS[: len(params)], params)
        assert [len(output.token_ids) for (output,) in outputs] == list(max_tokens)
        stats = take_rollout_stats(engine.collective_rpc)
        assert stats.num_accepted_tokens == stats.num_draft_tokens
        assert stats.num_drafter_faults == 0
        return stats.num_draft_tokens

    # One token from the prompt, then as many drafts as are left but one, 4 at most.
    assert drafted(2) == 0
    assert drafted(9) == 4 + 2
    assert drafted(9, 3, 5) == (4 + 2) + 1 + 3


def test_chunked_prompts_beside_decoding_requests_still_accept_everything(engine):
    take_rollout_stats(engine.collective_rpc)
    prompts = [[7 + i] * (3 if i % 2 else 150 + i) for i in range(16)]
    engine_support.generate(engine, prompts, temperature=1.0, max_tokens=40)
    stats = take_rollout_stats(engine.collective_rpc)
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 300


def test_compiled_code_writes_the_drafts_kv_too(policy):
    settings = {"drafter": {"scheme": "unquantized"}, "controller": {"rule": "always", "max_draft_tokens": 4}}
    # Traced as vLLM always does, before there is a KV cache; then run as traced, which saves the compiler's minute.
    traced = {"enforce_eager": False, "compilation_config": {"backend": "eager"}}
    with engine_support.running(policy, settings, max_num_seqs=8, **traced) as engine:
        engine_support.generate(engine, PROMPTS, max_tokens=60)
        stats = take_rollout_stats(engine.collective_rpc)
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 500
