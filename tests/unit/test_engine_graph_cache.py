"""vLLM keeps a compiled graph under a name that tells apart whatever the graph depends on."""

import hashlib

import pytest

pytest.importorskip("vllm", reason="the cache is vLLM's")

import torch
from vllm.compilation.caching import aot_compile_hash_factors
from vllm.config import VllmConfig

from efficient_rollout.config import CONFIG_KEY, DrafterSettings, Settings
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.schemes import make_scheme
from efficient_rollout.engine import graph_cache
from efficient_rollout.engine.graph_cache import name_policy_graph, packed_facts, with_graph_of
from efficient_rollout.engine.record import settings_of

# One that kernels of this package run on too.
OTHER_CAPABILITY = "AVX512" if torch.backends.cpu.get_cpu_capability() == "AVX2" else "AVX2"


def engine(*, native_products=False, **settings):
    """The configuration of an engine in a worker, its policy's graph named."""
    config = VllmConfig(additional_config={CONFIG_KEY: settings})
    name_policy_graph(config, native_products=native_products)
    return config


def name(config):
    """vLLM's, of a graph that is compiled with that configuration."""
    return hashlib.sha256(str(aot_compile_hash_factors(config)).encode()).hexdigest()


def drafter_name(config, *layers):
    packed = PackedWeights(make_scheme(DrafterSettings(), "cpu"), quantize_output_head=True)
    for layer, outputs in layers:
        packed.refresh(layer, torch.randn(outputs, 32), None)
    return name(VllmConfig(additional_config=with_graph_of(config, "drafter", packed_facts(packed))))


def test_equal_engines_share_a_graph():
    assert name(engine()) == name(engine())
    assert drafter_name(engine(), ("a", 32)) == drafter_name(engine(), ("a", 32))


def test_settings_and_whose_products_they_are_tell_graphs_apart():
    engines = [
        engine(),
        engine(native_products=True),
        engine(drafter={"scheme": "int4"}),
        engine(drafter={"scheme": "int4", "group_size": 32}),
        engine(drafter={"quantize_output_head": False}),
        engine(drafter={"attention_window_tokens": 64}),
    ]
    assert len({name(config) for config in engines}) == len(engines)
    assert len({drafter_name(config, ("a", 32)) for config in engines}) == len(engines)


def test_a_drafters_graph_is_not_the_policys_nor_one_of_other_packed_layers():
    config = engine()
    layers = [(), (("a", 32),), (("a", 64),), (("b", 32),), (("a", 32), ("b", 32))]
    names = {name(config), *(drafter_name(config, *packed) for packed in layers)}
    assert len(names) == 1 + len(layers)


def test_another_weight_is_no_other_graph():
    torch.manual_seed(1)
    first = drafter_name(engine(), ("a", 32))
    torch.manual_seed(2)
    assert drafter_name(engine(), ("a", 32)) == first


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(graph_cache, "cpu_flags", lambda: frozenset({"avx2"})),
        lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: OTHER_CAPABILITY),
    ],
    ids=["instruction sets", "capability"],
)
def test_another_processor_has_graphs_of_its_own(monkeypatch, change):
    before = engine()
    change(monkeypatch)
    assert name(engine()) != name(before)
    assert drafter_name(engine(), ("a", 32)) != drafter_name(before, ("a", 32))


def test_another_line_of_this_package_is_another_graph(tmp_path, monkeypatch):
    (tmp_path / "drafter").mkdir()
    module = tmp_path / "drafter" / "layer.py"
    monkeypatch.setattr(graph_cache.efficient_rollout, "__file__", str(tmp_path / "__init__.py"))
    names = []
    for text in ("x = 1", "x = 2", "x = 1"):
        module.write_text(text)
        graph_cache._code_digest.cache_clear()
        names.append(name(engine()))
    graph_cache._code_digest.cache_clear()
    assert names[0] == names[2] != names[1]


def test_settings_are_read_as_before():
    config = engine(drafter={"scheme": "int4"})
    assert settings_of(config) == Settings.parse({"drafter": {"scheme": "int4"}})
