"""Many architectures, tiny: greedy tokens equal stock vLLM's, and an unquantized drafter has every draft accepted."""

import functools
from typing import Any

import engine_support
import pytest
from rare_cases import cases

from efficient_rollout.drafter.cpu.native.library import native_missing
from efficient_rollout.engine.statistics import take_rollout_stats
from efficient_rollout.errors import EfficientRolloutError

pytestmark = pytest.mark.engine

WINDOW = 40  # tokens; the KV cache's blocks are smaller, and half of the prompts longer
_GEMMA = {"embedding_spread": 0.04, "query_pre_attn_scalar": 32, "tie_word_embeddings": True}
# Caps that are felt: scores and logits of these policies go to about 10.
_CAPS = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}
_MIXED = {"sliding_window": WINDOW, "num_hidden_layers": 4}
_ODD_SIZES = {"vocab_size": 151, "hidden_size": 96, "intermediate_size": 176, "num_attention_heads": 3}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {"architecture": "Qwen2"},
    "qwen2-windows": {"architecture": "Qwen2", "use_sliding_window": True, "max_window_layers": 0, **_MIXED},
    "qwen2-odd-sizes": {"architecture": "Qwen2", "num_key_value_heads": 1, **_ODD_SIZES},
    "qwen3": {"architecture": "Qwen3"},
    "llama": {"architecture": "Llama"},
    "llama-biases": {"architecture": "Llama", "attention_bias": True, "mlp_bias": True},
    "mistral-windows": {"architecture": "Mistral", "sliding_window": WINDOW},
    "ministral": {"architecture": "Ministral", "layer_types": ["sliding_attention", "full_attention"] * 2, **_MIXED},
    "phi3-windows": {"architecture": "Phi3", "sliding_window": WINDOW},
    "gemma": {"architecture": "Gemma", **_GEMMA},
    "gemma2": {"architecture": "Gemma2", **_GEMMA, **_CAPS, **_MIXED},
    "gemma3": {"architecture": "Gemma3Text", **_GEMMA, **_MIXED, "num_hidden_layers": 6},
    "granite": {"architecture": "Granite", "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "stablelm": {"architecture": "StableLm"},
    "gpt2": {"architecture": "GPT2"},
    "opt": {"architecture": "OPT", "ffn_dim": 256},
    "gpt-neox": {"architecture": "GPTNeoX"},
    "glm4": {"architecture": "Glm4"},
    "cohere2": {"architecture": "Cohere2", **_MIXED},
    "olmo2": {"architecture": "Olmo2"},
    "olmo3": {"architecture": "Olmo3", **_MIXED},
    "starcoder2-windows": {"architecture": "Starcoder2", "sliding_window": WINDOW},
    "smollm3": {"architecture": "SmolLM3"},
}
# One of each kind of attention, of positions and of fused layers; the rest is slow.
COMMON = ("gemma2", "mistral-windows", "gpt2", "one-kv-cache-group", "int8", "attention-window-for-nobody")
WITH_WINDOWS = tuple(name for name, config in ARCHITECTURES.items() if "sliding_window" in config)
# Without prefix caching, and with so few blocks that those a window leaves behind are soon another request's.
REUSING_BLOCKS = {"enable_prefix_caching": False, "num_gpu_blocks_override": 80}
ENGINES: dict[str, dict[str, Any]] = {
    name: REUSING_BLOCKS for name in ("qwen2-windows", "ministral", "gemma3", "starcoder2-windows")
}
# Further arms: the architecture, settings of the drafter, and engine arguments.
ARMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{name: (name, {"scheme": "unquantized"}, ENGINES.get(name, {})) for name in ARCHITECTURES},
    "one-kv-cache-group": ("gemma2", {"scheme": "unquantized"}, {"disable_hybrid_kv_cache_manager": True}),
    "int8": ("smollm3", {"scheme": "int8"}, {}),
    "attention-window": ("gemma2", {"scheme": "unquantized", "attention_window_tokens": 16}, {}),
    "attention-window-for-nobody": ("mistral-windows", {"scheme": "unquantized", "attention_window_tokens": 16}, {}),
}
RARE = tuple(arm for arm in ARMS if arm not in COMMON)
ROUNDING = 2e-4  # of log-probabilities from passes over other numbers of rows
REFUSED = "attention-window-for-nobody"
UNQUANTIZED = [arm for arm, (_, drafter, _) in ARMS.items() if drafter["scheme"] == "unquantized" and arm != REFUSED]
LIMITS = {
    "max_model_len": 384,
    "block_size": 32,
    "max_num_seqs": 8,
    # Fewer than most prompts have: they are computed in chunks, beside requests that decode.
    "max_num_batched_tokens": 64,
}
PROMPTS = [[3 + (7 * i * (j + 1) + 11 * j + i * i % 13) % 120 for i in range(n)] for j, n in enumerate(
    (5, 17, 33, 90, 150, 200, 260, 300)
)]  # fmt: skip
# The native kernel attends in layers without a window, vLLM's own in those with one.
SETTINGS = {
    "verify_kernel": "auto" if native_missing() else "native",
    "controller": {"rule": "always", "max_draft_tokens": 4},
}


def generate(engine: Any, temperature: float) -> list[Any]:
    """Completions with the two best log-probabilities of every token."""
    given = {"temperature": temperature, "max_tokens": 32, "logprobs": 2}
    return [outputs[0] for outputs in engine_support.generate(engine, PROMPTS, **given)]


def packed_layers(worker: Any) -> dict[str, tuple[list[int], list[int] | None, int]]:
    """By path, the shape of each linear layer and output head of the policy, and of what the drafter has there.

    The last number is the same where two share a packed layer.
    """
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    from efficient_rollout.engine.tapped_target import PackedMethod

    drafter, facts = worker.self_drafter.model, {}
    for path, layer in worker.model_runner.get_model().named_modules():
        if isinstance(layer, LinearBase):
            shape = [layer.output_size, layer.input_size]
        elif isinstance(layer, ParallelLMHead):
            shape = [layer.num_embeddings_padded, layer.embedding_dim]
        else:
            continue
        method = drafter.get_submodule(path).quant_method
        packed = method._packed if isinstance(method, PackedMethod) else None
        facts[path] = (shape, packed and [packed.out_features, packed.in_features], id(packed))
    return facts


def attention_groups(worker: Any) -> list[tuple[int, bool]]:
    """The KV cache group of each group of the drafter's attention layers, and whether these have a window."""
    return [(group.cache_group, group.has_own_window) for group in worker.self_drafter.attention.groups]


@pytest.fixture(scope="module")
def path_of(tmp_path_factory):
    """The path of an architecture's policy."""
    folder = tmp_path_factory.mktemp("architectures")
    return functools.cache(lambda name: engine_support.random_policy(folder / name, **ARCHITECTURES[name]))


@pytest.fixture(scope="module")
def stock_of(path_of):
    """Greedy completions of an architecture without a trace of this package."""

    @functools.cache
    def run(name):
        with engine_support.running(path_of(name), None, **LIMITS, **ENGINES.get(name, {})) as engine:
            completions = generate(engine, 0.0)
        assert len({tuple(completion.token_ids) for completion in completions}) > 3, "the policy must say something"
        return completions

    return run


@pytest.fixture(scope="module")
def drafting_of(path_of):
    """Of an arm: greedy completions, once more after others on a warm cache, drafts of each rollout, and layers."""

    @functools.cache
    def run(arm):
        name, drafter, arguments = ARMS[arm]
        row: dict[str, Any] = {"greedy": [], "drafts": []}
        with engine_support.running(path_of(name), {**SETTINGS, "drafter": drafter}, **LIMITS, **arguments) as engine:
            take_rollout_stats(engine.collective_rpc)
            # The last on a warm cache, in which windows have given blocks back.
            for temperature in (0.0, 1.0, *([0.0] if name in WITH_WINDOWS else [])):
                completions = generate(engine, temperature)
                stats = take_rollout_stats(engine.collective_rpc)
                assert stats.num_drafter_faults == 0
                row["drafts"].append((stats.num_accepted_tokens, stats.num_draft_tokens))
                if temperature == 0.0:
                    row["greedy"].append(completions)
            row["packed"] = engine.collective_rpc(packed_layers)[0]
            row["attention"] = engine.collective_rpc(attention_groups)[0]
        return row

    return run


@pytest.mark.parametrize("arm", cases((arm for arm in ARMS if arm != REFUSED), rare=RARE))
def test_greedy_tokens_equal_stock(stock_of, drafting_of, arm):
    for completions in drafting_of(arm)["greedy"]:
        engine_support.assert_equal(completions, stock_of(ARMS[arm][0]), tie=ROUNDING)


@pytest.mark.parametrize("arm", cases(UNQUANTIZED, rare=RARE))
def test_an_unquantized_drafter_has_every_draft_accepted(drafting_of, arm):
    for accepted, drafted in drafting_of(arm)["drafts"]:
        if arm == "attention-window":
            # Of layers that attend to everything the drafter sees a part: some of its drafts are not the policy's.
            assert 0 < accepted < drafted
        else:
            assert accepted == drafted > 100


def test_every_linear_layer_is_packed_once_under_a_name_of_its_own(drafting_of):
    packed = drafting_of("int8")["packed"]
    assert len(packed) > 4
    assert len({number for _, _, number in packed.values()}) == len(packed)
    for path, (shape, of_drafter, _) in packed.items():
        assert of_drafter == shape, path


def test_windows_are_those_of_the_policy_in_every_group_of_the_cache(drafting_of):
    assert {has_window for _, has_window in drafting_of("gemma2")["attention"]} == {True, False}
    assert len({group for group, _ in drafting_of("gemma2")["attention"]}) == 2
    assert len({group for group, _ in drafting_of("one-kv-cache-group")["attention"]}) == 1
    assert [has_window for _, has_window in drafting_of("mistral-windows")["attention"]] == [True]


def test_a_window_that_no_layer_would_have_is_refused(path_of):
    name, drafter, arguments = ARMS[REFUSED]
    with pytest.raises(EfficientRolloutError, match="attention_window_tokens"):
        engine_support.start(path_of(name), {**SETTINGS, "drafter": drafter}, **LIMITS, **arguments)
