"""Policies in float16, and of sizes no kernel has tiles for: drafted for with quantized weights, or said so."""

import engine_support
import pytest

from efficient_rollout.engine.statistics import take_rollout_stats

pytestmark = pytest.mark.engine

# Neither 16 nor 64 divides the widths, and vLLM pads the vocabulary to 192.
ODD = {
    "vocab_size": 131,
    "hidden_size": 168,
    "intermediate_size": 200,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
}
NUM_LAYERS = 2 * 4 + 1
PROMPTS = [[3 + i, 40 + 2 * i, 100 - i, 17] * (1 + i % 3) for i in range(12)]
INT4 = {"scheme": "int4", "group_size": 64}
# Settings, and the least and the most of their first drafts that are accepted: what was not quantized would have all.
DRAFTERS = {
    "int4-64": (INT4, 0.4, 0.9),
    "int4-32": ({"scheme": "int4", "group_size": 32}, 0.4, 0.9),
    "int4-128": ({"scheme": "int4", "group_size": 128}, 0.4, 0.9),
    "int8": ({"scheme": "int8"}, 0.8, 0.999),
    # Rows computed together may round otherwise than one alone, and a tie then falls the other way.
    "unquantized": ({"scheme": "unquantized"}, 0.98, 1.0),
}
# Stock's two best may change places where they are closer than what float16 logits round to.
TIE = 0.02


def settings(drafter):
    return {"drafter": drafter, "controller": {"rule": "always", "max_draft_tokens": 4}}


def greedy(engine):
    return [outputs[0] for outputs in engine_support.generate(engine, PROMPTS, max_tokens=48, logprobs=2)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return engine_support.random_policy(tmp_path_factory.mktemp("policy"), **ODD)


@pytest.fixture(scope="module")
def stock_greedy(policy):
    with engine_support.running(policy, None, dtype="float16") as engine:
        return greedy(engine)


@pytest.fixture(scope="module")
def engine(policy, stock_greedy):
    worker = {"worker_cls": "scripted_engine.FaultyWorker"}
    with engine_support.running(policy, settings(INT4), dtype="float16", **worker) as engine:
        yield engine


def test_every_layer_of_it_is_quantized(engine):
    stats = take_rollout_stats(engine.collective_rpc)
    # Whole tiles, by half a byte and their share of a scale and an offset in bfloat16.
    tiles = 2 * (7 * 32 * 192 + 176 * 192 + 400 * 192 + 176 * 256) + 192 * 192
    assert stats.drafter_bytes == tiles * (0.5 + 4 / 64)
    assert stats.packed_weight_share == 1.0
    status = engine.collective_rpc("plugin_status")[0]
    assert (status["packed_layers"], status["unquantized_layers"]) == (NUM_LAYERS, 0)
    assert status["packed_weight_share"] == 1.0


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_greedy_tokens_equal_stock_and_drafts_are_of_the_scheme(engine, policy, stock_greedy, drafter):
    wanted, least, most = DRAFTERS[drafter]
    engine.collective_rpc("use_drafter", args=(wanted, str(policy)))
    engine.reset_prefix_cache()
    take_rollout_stats(engine.collective_rpc)
    engine_support.assert_equal(greedy(engine), stock_greedy, tie=TIE)
    stats = take_rollout_stats(engine.collective_rpc)
    assert stats.num_drafter_faults == 0
    assert least <= stats.accepted_per_position[0] / stats.drafted_per_position[0] <= most
    assert (stats.drafter_bytes > 0) == (drafter != "unquantized")
    assert stats.packed_weight_share == float(drafter != "unquantized")


def test_what_a_scheme_does_not_take_is_said_at_the_start_with_the_share_of_the_rest(tmp_path, caplog):
    # Padding 24 inputs to 64 would more than double them.
    policy = engine_support.random_policy(tmp_path, **ODD | {"intermediate_size": 24})
    with engine_support.running(policy, settings(INT4), dtype="float16") as engine:
        stats = take_rollout_stats(engine.collective_rpc)
        status = engine.collective_rpc("plugin_status")[0]
    taken = 168 * (2 * (7 * 32 + 160 + 2 * 24) + 192)
    share = taken / (taken + 2 * 168 * 24)
    assert stats.packed_weight_share == status["packed_weight_share"] == pytest.approx(share)
    assert (status["packed_layers"], status["unquantized_layers"]) == (NUM_LAYERS - 2, 2)
    said = caplog.text
    assert f"drafter.scheme=int4 quantizes only {100 * share:.0f} % of the weights a draft step reads; 2 of 9" in said
    assert "model.layers.0.mlp.down_proj (168 x 24), model.layers.1.mlp.down_proj (168 x 24)" in said
