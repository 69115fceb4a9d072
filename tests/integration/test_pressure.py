"""Engines under pressure, and interrupted: tokens and log-probabilities stay those of stock vLLM."""

import engine_support
import pytest

from efficient_rollout.engine.statistics import take_rollout_stats
from efficient_rollout.metrics.timeline import ACCEPTED, DRAFTED, END, NUM_TOKENS, PASSES, START, parts_of

pytestmark = pytest.mark.engine

PROMPTS = [[8 + (5 * i) % 90, 9 + (11 * i) % 80, 40 + i, 17] * 6 for i in range(12)]
GREEDY = {"max_tokens": 80, "logprobs": 1, "detokenize": True}
ROUNDING = 2e-4
# Log-probabilities after temperature and penalties; a cache that holds a third of what prompts and responses need.
OPTIONS = {"logprobs_mode": "processed_logprobs", "skip_tokenizer_init": False}
PRESSED = {"kv_cache_memory_bytes": 13 << 15, "block_size": 32, "max_num_batched_tokens": 48, "max_num_seqs": 12}
PENALTIES = {"presence_penalty": 0.8, "repetition_penalty": 1.3}
KINDS = {
    "plain": {},
    "penalties": PENALTIES,
    "seeds": {"temperature": 1.0, "seed": 11},
    "seeds-and-top-p": {"temperature": 0.7, "seed": 12, "top_p": 0.9},
}
REGEX = "[a-f]{6}[0-9]{20}"


def completions(engine, prompts=PROMPTS, **params):
    return [
        (list(output.token_ids), [p[t].logprob for t, p in zip(output.token_ids, output.logprobs, strict=True)])
        for (output,) in engine_support.generate(engine, prompts, **{**GREEDY, **params})
    ]


def structured(**more):
    from vllm.sampling_params import StructuredOutputsParams

    return {"structured_outputs": StructuredOutputsParams(regex=REGEX), "max_tokens": 26, **more}


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    from efficient_rollout.tasks.tokenizer import build_tokenizer

    paths = [
        engine_support.random_policy(tmp_path_factory.mktemp(f"policy{seed}"), seed=seed, spread=0.14)
        for seed in (0, 1)
    ]
    for path in paths:
        build_tokenizer(512).save_pretrained(path)
    return paths


@pytest.fixture(scope="module")
def stock(policies):
    with engine_support.running(policies[0], None, **OPTIONS) as engine:
        return {name: completions(engine, **params) for name, params in (KINDS | {"structured": structured()}).items()}


@pytest.fixture(scope="module")
def engine(policies, stock):
    settings = {
        "drafter": {"scheme": "int4", "group_size": 128},
        "controller": {"rule": "always", "max_draft_tokens": 4},
    }
    classes = {"worker_cls": "scripted_engine.FaultyWorker"}
    with engine_support.running(policies[0], settings, **classes, **OPTIONS, **PRESSED) as engine:
        yield engine


def assert_equal(ours, theirs):
    for (tokens, logprobs), (expected, expected_logprobs) in zip(ours, theirs, strict=True):
        assert tokens == expected
        assert logprobs == pytest.approx(expected_logprobs, abs=ROUNDING)


def assert_lanes(stats, *, num_responses):
    """Each response has a lane, in which every token and every draft of it is counted once."""
    (lanes,), (bins,) = stats.lanes.values(), stats.timelines.values()
    assert len(lanes) == stats.num_responses == num_responses
    assert sum(lane[NUM_TOKENS] for lane in lanes) == stats.num_generated_tokens
    counted = [sum(part[place] for lane in lanes for part in parts_of(lane)) for place in (PASSES, DRAFTED, ACCEPTED)]
    assert counted == [stats.num_verify_passes, stats.num_draft_tokens, stats.num_accepted_tokens]
    assert all(lane[START] <= part[START] < part[END] <= lane[END] for lane in lanes for part in parts_of(lane))
    assert max(lane[END] for lane in lanes) == pytest.approx(bins[-1][END], abs=0.01), "the timeline's clock"


@pytest.mark.parametrize("name", KINDS)
def test_preempted_requests_and_processed_logprobs_equal_stock(engine, stock, name):
    take_rollout_stats(engine.collective_rpc)
    before = engine.collective_rpc("num_resumed_requests")[0]
    assert_equal(completions(engine, **KINDS[name]), stock[name])
    assert engine.collective_rpc("num_resumed_requests")[0] > before, "the cache must have been too small"
    stats = take_rollout_stats(engine.collective_rpc)
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens, "both outcomes must have happened"
    assert_lanes(stats, num_responses=12)


def test_requests_that_wait_for_a_tick_keep_their_acceptance(engine):
    take_rollout_stats(engine.collective_rpc)
    completions(engine, temperature=1.0, logprobs=0)
    stats = take_rollout_stats(engine.collective_rpc)
    # A draft with the noise of another position is accepted with the policy's probability of it, here below one half.
    assert stats.accepted_per_position[0] > 0.65 * stats.drafted_per_position[0]


def test_structured_output_equals_stock(engine, stock):
    ours = completions(engine, PROMPTS[:6], **structured())
    assert_equal(ours, stock["structured"][:6])
    text = engine.get_tokenizer().decode(ours[0][0])
    assert len(text) == 26
    assert text[:6].isalpha()
    assert text[6:].isdigit()


def run_with(engine, between, *, after_ticks):
    """Roll out, with an interruption after some ticks; finished outputs by prompt, those of unfinished ones absent."""
    for i, prompt in enumerate(PROMPTS):
        engine.llm_engine.add_request(str(i), {"prompt_token_ids": prompt}, engine_support.sampling(**GREEDY))
    finished, ticks = {}, 0
    while engine.llm_engine.has_unfinished_requests():
        for output in engine.llm_engine.step():
            if output.finished:
                finished[int(output.request_id)] = output.outputs[0]
        ticks += 1
        if ticks == after_ticks:
            between(engine.llm_engine)
    return finished


def test_requests_aborted_in_flight_leave_the_others_alone(engine, stock):
    take_rollout_stats(engine.collective_rpc)
    finished = run_with(engine, lambda core: core.abort_request(["1", "4", "7"]), after_ticks=8)
    # One of the three was never scheduled.
    assert_lanes(take_rollout_stats(engine.collective_rpc), num_responses=11)
    assert sorted(set(range(12)) - finished.keys()) == [1, 4, 7]
    for i, output in finished.items():
        assert list(output.token_ids) == stock["plain"][i][0]


def test_a_pause_with_a_weight_sync_in_between(engine, stock, policies):
    """To the same weights: requests go on, and end as if nothing had been. To others: their KV goes with them."""

    def sync(path):
        def pause_sync_resume(_core):
            core = engine.llm_engine.engine_core.engine_core
            core.pause_scheduler("keep", True)
            engine.collective_rpc("sync_from", args=(str(path),))
            core.resume_scheduler()

        return pause_sync_resume

    take_rollout_stats(engine.collective_rpc)
    finished = run_with(engine, sync(policies[0]), after_ticks=8)
    for i, output in finished.items():
        assert list(output.token_ids) == stock["plain"][i][0]
    stats = take_rollout_stats(engine.collective_rpc)
    assert stats.num_weight_syncs == 1
    assert stats.num_accepted_tokens > 0
    others = run_with(engine, sync(policies[1]), after_ticks=8)
    assert len(others) == 12
    assert any(list(others[i].token_ids) != stock["plain"][i][0] for i in range(12))
    engine.collective_rpc("sync_from", args=(str(policies[0]),))
    engine.reset_prefix_cache()
    assert_equal(completions(engine), stock["plain"])
