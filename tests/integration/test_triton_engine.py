"""Drafting in vLLM's V2 model runner, which GPUs have: every token is the one that stock vLLM samples without.

The runner, its sampler, and this package's kernels run whole, in Triton's interpreter; products of quantized layers are
those of `drafter/cuda/products.py`'s references.
"""

import gc
import itertools
from collections import defaultdict

import pytest

pytest.importorskip("triton", reason="the CUDA path's tests need Triton: bash scripts/install.sh --triton")

import engine_support
import interpreted
import numpy as np
import torch
from rare_cases import cases
from small_policies import SIZES, save_policy

from efficient_rollout.config import Settings
from efficient_rollout.engine import engine_args
from efficient_rollout.engine.request_word import with_word
from efficient_rollout.engine.scheduler import AsyncEfficientScheduler
from efficient_rollout.gpu_check.stand import worker_of
from efficient_rollout.gpu_check.weights import addresses_of

VOCABULARY, NUM_TOKENS, MOST_DRAFTS = SIZES["vocab_size"], 14, 3
PROMPTS = [[(7 * number + place) % VOCABULARY for place in range(5 + 9 * number)] for number in range(4)]
# By name, `other` with the shape of `qwen3`: architecture, seed, and more.
POLICIES = {
    "qwen3": ("Qwen3", 0, {}),
    "qwen2-tied": ("Qwen2", 1, {"tie_word_embeddings": True}),
    "llama": ("Llama", 2, {}),
    "other": ("Qwen3", 3, {}),
}
CONDITIONS = {
    "greedy": {"temperature": 0.0},
    "temperature-1": {},
    "top-k-top-p-0.7": {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    "penalties": {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
    "bias-and-min-p": {"min_p": 0.05, "logit_bias": {5: 3.0}},
    "bad-words": {"min_tokens": 6, "stop_token_ids": list(range(20, 60))},
}
RARE = {"penalties", "bias-and-min-p"}
# The drafter draws with the verifier's noise and temperature, and knows of nothing else that changes logits.
FOLLOWED = ("greedy", "temperature-1", "bad-words")


class CyclingScheduler(AsyncEfficientScheduler):
    """The product's, with another number of drafts at every tick, zero among them."""

    cycle = (MOST_DRAFTS, 0, 1, 2, 3, 3, 0, 0, 2)

    def decide(self, num_scheduled_requests):
        """Never mind what the rule says."""
        super().decide(num_scheduled_requests)
        self._tick = getattr(self, "_tick", -1) + 1
        return self.cycle[self._tick % len(self.cycle)]


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Paths of random policies, by name."""
    return {
        name: save_policy(tmp_path_factory.mktemp(name), architecture, seed=seed, **more)
        for name, (architecture, seed, more) in POLICIES.items()
    }


def settings(scheme="int8", rule="always"):
    return Settings.parse(
        {
            "drafter": {"scheme": scheme, "group_size": 128},
            "controller": {"rule": rule, "max_draft_tokens": MOST_DRAFTS},
        }
    )


def sampled(engine, seeds=True, wanted=(None,) * 4, **condition):
    """Token ids and log-probabilities of each prompt's response; `wanted` is the longest draft of each."""
    given = {"temperature": 1.0, "max_tokens": NUM_TOKENS, "logprobs": 0, **condition}
    parameters = [
        engine_support.sampling(
            seed=100 + number if seeds else None,
            extra_args=None if longest is None else with_word(None, longest),
            **given,
        )
        for number, longest in enumerate(wanted)
    ]
    return [
        (
            list(response.token_ids),
            [at[token].logprob for at, token in zip(response.logprobs, response.token_ids, strict=True)],
        )
        for (response,) in engine_support.generate(engine, PROMPTS, parameters)
    ]


def assert_same(ours, stock):
    assert [tokens for tokens, _ in ours] == [tokens for tokens, _ in stock]
    for (_, our), (_, their) in zip(ours, stock, strict=True):
        assert our == pytest.approx(their, abs=1e-4)


@pytest.fixture(scope="module")
def stock(policies):
    """What stock samples, by policy and condition; one engine at a time."""
    engines, answers = {}, {}

    def answer(policy, condition, **options):
        key = policy, condition, tuple(options.items())
        if key not in answers:
            if (policy, tuple(options.items())) not in engines:
                engines.clear()
                gc.collect()
                engines[policy, tuple(options.items())] = interpreted.engine(policies[policy], **options)
            answers[key] = sampled(engines[policy, tuple(options.items())], **CONDITIONS[condition])
        return answers[key]

    for condition in CONDITIONS.keys() - RARE:
        answer("qwen3", condition)
    return answer


@pytest.fixture(scope="module")
def engine(policies, stock):
    """Drafts in int8, cycling through every number of drafts, scheduling asynchronously."""
    return interpreted.engine(policies["qwen3"], settings(), scheduler_cls=CyclingScheduler)


@pytest.mark.parametrize("condition", cases(CONDITIONS, rare=RARE))
def test_samples_are_those_of_stock(engine, stock, condition, monkeypatch):
    # Requests with a bias are let through for engines with a worker of this package.
    monkeypatch.setattr(engine_args, "GPU_WORKER", "interpreted.InterpretedWorker")
    engine.collective_rpc("take_rollout_stats")
    assert_same(sampled(engine, **CONDITIONS[condition]), stock("qwen3", condition))
    (stats,) = engine.collective_rpc("take_rollout_stats")
    drafted, accepted = (sum(stats[f"{what}_per_position"]) for what in ("drafted", "accepted"))
    assert drafted > 15
    assert accepted > (0.5 if condition in FOLLOWED else 0.2) * drafted
    assert stats["draft_seconds"] > 0


def test_a_chain_behind_rejected_drafts_begins_where_the_response_ends(engine, stock, monkeypatch):
    """Chains of two are wrong and rejected. Those of three mostly follow them, and are right."""
    drafter = worker_of(engine).self_drafter
    draw = drafter._draw
    wrong = lambda logits: (draw(logits) + (drafter.num_draft_tokens == 2)) % VOCABULARY  # noqa: E731
    monkeypatch.setattr(drafter, "_draw", wrong)
    assert_same(sampled(engine), stock("qwen3", "temperature-1"))
    (stats,) = engine.collective_rpc("take_rollout_stats")
    assert stats["accepted_per_position"][2] > 0.5 * stats["drafted_per_position"][2] > 0


def verified(engine, monkeypatch):
    """Sets of numbers of drafts that ticks verify from now on, by the request's seed."""
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    found, stock = defaultdict(set), scheduler.update_from_output

    def update_from_output(scheduled, output):
        for request, drafts in scheduled.scheduled_spec_decode_tokens.items():
            # One may have ended in the tick before, which was not known when this one was scheduled.
            if request in scheduler.requests:
                found[scheduler.requests[request].sampling_params.seed].add(len(drafts))
        return stock(scheduled, output)

    monkeypatch.setattr(scheduler, "update_from_output", update_from_output)
    return found


def test_a_request_has_no_more_drafts_verified_than_it_wants(engine, stock, monkeypatch):
    found = verified(engine, monkeypatch)
    assert_same(sampled(engine, wanted=[0, 1, None, 2]), stock("qwen3", "temperature-1"))
    assert found == {101: {1}, 102: {1, 2, 3}, 103: {1, 2}}


def test_where_no_request_wants_drafts_nothing_is_drafted(engine, stock, monkeypatch):
    monkeypatch.setattr(CyclingScheduler, "decide", AsyncEfficientScheduler.decide)
    found = verified(engine, monkeypatch)
    engine.collective_rpc("take_rollout_stats")
    assert_same(sampled(engine, wanted=[0] * len(PROMPTS)), stock("qwen3", "temperature-1"))
    (stats,) = engine.collective_rpc("take_rollout_stats")
    assert (stats["draft_seconds"], found) == (0, {})
    assert stats["ticks_by_reason"]["unwanted"] >= NUM_TOKENS


def test_the_drafter_owns_no_kv_cache(engine):
    config = engine.llm_engine.engine_core.engine_core.scheduler.kv_cache_config
    assert sum(len(group.layer_names) for group in config.kv_cache_groups) == SIZES["num_hidden_layers"]


def test_a_drafter_of_other_weights_changes_no_token(engine, stock):
    packed = worker_of(engine).self_drafter.packed
    for number, layer in enumerate(packed.layers.values()):
        weight = torch.randn(layer.out_features, layer.in_features, generator=torch.Generator().manual_seed(number))
        layer.requantize(weight, layer.bias)
    engine.collective_rpc("take_rollout_stats")
    assert_same(sampled(engine), stock("qwen3", "temperature-1"))
    (stats,) = engine.collective_rpc("take_rollout_stats")
    assert sum(stats["accepted_per_position"]) < 0.3 * sum(stats["drafted_per_position"])


def test_a_weight_sync_reaches_policy_and_drafter_in_place(engine, stock, policies):
    worker = worker_of(engine)
    version = worker.health.weights_version
    buffers = [tensor.data_ptr() for tensor in worker.model_runner.get_model().parameters()]
    packs = {name: layer.dequantize() for name, layer in worker.self_drafter.packed.layers.items()}
    addresses = addresses_of(worker.self_drafter.packed.layers)
    engine.collective_rpc("reload_weights", kwargs={"weights_path": policies["other"]})
    assert worker.health.weights_version == version + 1
    assert [tensor.data_ptr() for tensor in worker.model_runner.get_model().parameters()] == buffers
    assert addresses_of(worker.self_drafter.packed.layers) == addresses
    assert all(not torch.equal(layer.dequantize(), packs[n]) for n, layer in worker.self_drafter.packed.layers.items())
    assert_same(sampled(engine), stock("other", "temperature-1"))
    (stats,) = engine.collective_rpc("take_rollout_stats")
    assert sum(stats["accepted_per_position"]) > 0.5 * sum(stats["drafted_per_position"])
    assert stats["num_weight_syncs"] == 1


def test_what_a_sleep_discards_is_not_drafted_with_before_the_next_sync(engine, stock, policies):
    worker = worker_of(engine)
    worker.sleep(1)
    assert worker.health.drafter_fault is None
    worker.sleep(2)
    worker.self_drafter.draft_tokens.fill_(-1)
    engine.collective_rpc("take_rollout_stats")
    assert_same(sampled(engine), stock("other", "temperature-1"))
    (stats,) = engine.collective_rpc("take_rollout_stats")
    assert stats["draft_seconds"] == 0
    engine.collective_rpc("reload_weights", kwargs={"weights_path": policies["qwen3"]})
    assert_same(sampled(engine), stock("qwen3", "temperature-1"))
    (stats,) = engine.collective_rpc("take_rollout_stats")
    assert sum(stats["accepted_per_position"]) > 0


def test_a_fault_of_the_drafter_costs_no_token(engine, stock, monkeypatch):
    drafter, calls = worker_of(engine).self_drafter, itertools.count()
    draw = drafter._draw

    def failing(logits):
        if next(calls) == 2:
            drafter.draft_tokens.fill_(-1)  # as stock does behind a chain's end, from 0.32 on
            raise RuntimeError("no more drafts")
        return draw(logits)

    monkeypatch.setattr(drafter, "_draw", failing)
    assert_same(sampled(engine), stock("qwen3", "temperature-1"))
    (stats,) = engine.collective_rpc("take_rollout_stats")
    assert "no more drafts" in worker_of(engine).health.drafter_fault
    assert stats["num_drafter_faults"] == 1
    worker_of(engine).health.drafter_fault = None


def test_weights_that_are_no_policys_generate_nothing(engine, stock, policies):
    from efficient_rollout.errors import WeightSyncError

    worker = worker_of(engine)
    with pytest.raises(WeightSyncError, match="18 of the policy's 19 parameters did not get"):
        worker.reload_weights(iter([("model.norm.weight", torch.ones(SIZES["hidden_size"]))]))
    ((response,),) = engine_support.generate(engine, PROMPTS[:1], max_tokens=4)
    assert response.finish_reason == "error"
    engine.collective_rpc("reload_weights", kwargs={"weights_path": policies["qwen3"]})
    assert_same(sampled(engine), stock("qwen3", "temperature-1"))


def test_requests_without_a_seed_draw_one_stream_each(engine):
    responses = [tokens for tokens, _ in sampled(engine, seeds=False)]
    assert len({tuple(tokens) for tokens in responses}) == len(responses)


def test_every_engine_of_a_server_draws_seeds_of_its_own(engine, monkeypatch):
    worker = worker_of(engine)

    def seeds(rank):
        monkeypatch.setattr(worker.vllm_config.parallel_config, "data_parallel_index", rank)
        worker.compile_or_warm_up_model()
        return tuple(np.random.randint(0, 1 << 30, 4))

    assert seeds(0) == tuple(np.random.RandomState(worker.model_config.seed).randint(0, 1 << 30, 4)), "as stock"
    assert seeds(1) == seeds(1)
    assert len({seeds(rank) for rank in range(4)}) == 4


@pytest.mark.parametrize(
    ("policy", "scheme", "asynchronous"),
    [
        ("qwen2-tied", "int4", False),
        # Architectures and schemes are those of the check for GPUs too (test_triton_gpu_check.py), all but the chunks.
        pytest.param("llama", "fp8", True, marks=pytest.mark.slow),
        pytest.param("qwen3", "unquantized", True, marks=pytest.mark.slow),
    ],
)
def test_every_architecture_and_scheme(policies, stock, policy, scheme, asynchronous):
    """Prompts are computed in chunks, with a prefix cache: a drafter must never write where the policy reads."""
    options = {"max_num_batched_tokens": 16, "enable_prefix_caching": True}
    expected = stock(policy, "temperature-1", **options)
    gc.collect()
    engine = interpreted.engine(policies[policy], settings(scheme), asynchronous=asynchronous, **options)
    for _ in range(2):
        assert_same(sampled(engine), expected)
    (stats,) = engine.collective_rpc("take_rollout_stats")
    drafted, accepted = (sum(stats[f"{what}_per_position"]) for what in ("drafted", "accepted"))
    # A response ends in the middle of its last chain.
    least = drafted - 2 * len(PROMPTS) * MOST_DRAFTS if scheme == "unquantized" else 0.2 * drafted
    assert accepted >= least > 0
