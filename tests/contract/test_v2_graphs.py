"""Every number of drafts and of requests has a full CUDA graph in vLLM's V2 runner: asked of stock's own manager.

The engine's configuration is real, with what a CPU takes out of it put back; nothing is captured.
"""

import json
from importlib import import_module
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import torch
from names_of_vllm_v2 import MOVED
from packaging.version import Version
from vllm import __version__ as vllm_version
from vllm.config.compilation import CUDAGraphMode
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.worker.gpu import cudagraph_utils

from efficient_rollout.engine.gpu.graphs import DEFAULT_LIMIT, capture_limit, complete, request_counts
from efficient_rollout.errors import UnsupportedVersionError

FULL, PIECEWISE = CUDAGraphMode.FULL, CUDAGraphMode.PIECEWISE
SIZES = [(most, seqs) for most in (1, 4, 8) for seqs in (1, 3, 64)]
POLICY = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 64,
    "max_position_embeddings": 512, "torch_dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    (folder / "config.json").write_text(json.dumps(POLICY))
    return str(folder)


@pytest.fixture
def engine(policy, monkeypatch):
    """Makes an engine's configuration, as a GPU's platform and the runner leave it, and a graph mode."""
    monkeypatch.setattr(cudagraph_utils, "get_pp_group", lambda: SimpleNamespace(is_first_rank=True, is_last_rank=True))
    monkeypatch.setattr(cudagraph_utils, "current_platform", SimpleNamespace(get_global_graph_pool=lambda: None))

    def make(most, max_num_seqs, *, schedule=None, limit=None, mode=CUDAGraphMode.FULL_AND_PIECEWISE):
        speculative = {"method": "draft_model", "model": policy, "num_speculative_tokens": most}
        speculative |= {"num_speculative_tokens_per_batch_size": schedule} if schedule else {}
        config = EngineArgs(
            model=policy, tokenizer=policy, skip_tokenizer_init=True, max_model_len=512, max_num_batched_tokens=16384,
            max_num_seqs=max_num_seqs, speculative_config=speculative if most else None,
        ).create_engine_config()  # fmt: skip
        compilation = config.compilation_config
        # The CPU's platform takes graphs away; a GPU's default, and stock's own sizes for it.
        compilation.cudagraph_mode = mode
        compilation.cudagraph_capture_sizes, compilation.max_cudagraph_capture_size = None, limit
        config._set_cudagraph_sizes()
        return config, compilation.resolve_cudagraph_mode_and_sizes(
            AttentionCGSupport.UNIFORM_BATCH, "FLASH_ATTN", most + 1, use_v2_model_runner=True
        )

    return make


def of_policy(config, mode, **options):
    most = config.num_speculative_tokens
    return cudagraph_utils.ModelCudaGraphManager(
        config, torch.device("cpu"), mode, decode_query_len=most + 1, **options
    )


def of_chain(config, rows=1):
    for name in MOVED[0]:
        module, _, cls = name.partition(":")
        try:
            made = getattr(import_module(module), cls)
        except ImportError:
            continue
        return made(config, torch.device("cpu"), CUDAGraphMode.FULL_DECODE_ONLY, decode_query_len=rows)
    raise AssertionError("there is no manager of the draft chain's graphs")


def every_k(most, max_num_seqs):
    """What stock's configuration can say to name every number of drafts."""
    return [(k + 1, k + 1, k) for k in range(most)] + [(most + 1, max(most + 1, max_num_seqs), most)]


def dispatch(manager, num_reqs, query_len):
    manager._graphs_captured = True
    return manager.dispatch(num_reqs, num_reqs * query_len, query_len, 0, max_query_len=query_len)


def missed(manager, max_num_seqs):
    """Query length and number of requests of every batch without a full graph."""
    return [
        (query_len, num_reqs)
        for query_len in range(1, manager.decode_query_len + 1)
        for num_reqs in range(1, max_num_seqs + 1)
        if dispatch(manager, num_reqs, query_len).cg_mode != FULL
    ]


@pytest.mark.parametrize(("most", "max_num_seqs"), SIZES)
def test_every_batch_has_the_smallest_graph_of_its_length(engine, most, max_num_seqs):
    manager = of_policy(*engine(most, max_num_seqs, limit=capture_limit(most, max_num_seqs)))
    complete(manager)
    assert missed(manager, max_num_seqs) == []
    full = manager._capture_descs[FULL]
    for query_len in range(1, most + 2):
        own = [graph.num_tokens for graph in full if graph.uniform_token_count == query_len]
        for num_reqs in range(1, max_num_seqs + 1):
            found, tokens = dispatch(manager, num_reqs, query_len), num_reqs * query_len
            assert found in full
            assert found.uniform_token_count == query_len
            assert found.num_reqs * query_len == found.num_tokens
            assert found.num_tokens == min(size for size in own if size >= tokens)


@pytest.mark.parametrize(("most", "max_num_seqs"), SIZES)
def test_stock_has_graphs_for_the_most_drafts_alone(engine, most, max_num_seqs):
    lengths = {query_len for query_len, _ in missed(of_policy(*engine(most, max_num_seqs)), max_num_seqs)}
    assert lengths >= set(range(1, most + 1))


@pytest.mark.parametrize(("most", "max_num_seqs"), [size for size in SIZES if size != (1, 64)])
def test_stock_misses_batches_where_every_k_is_named(engine, most, max_num_seqs):
    manager = of_policy(*engine(most, max_num_seqs, schedule=every_k(most, max_num_seqs)))
    assert missed(manager, max_num_seqs)


def test_completed_takes_fewer_graphs_than_stock_with_every_k(engine):
    manager, stock = of_policy(*engine(4, 64)), of_policy(*engine(4, 64, schedule=every_k(4, 64)))
    complete(manager)
    full = manager._capture_descs[FULL]
    assert len(full) == len(request_counts(64, is_dense=True)) + 4 * len(request_counts(64)) == 47
    assert len(stock._capture_descs[FULL]) > 2 * len(full)
    assert len(set(full)) == len(full), "stock refuses to capture a graph twice"
    tokens = [graph.num_tokens for graph in full]
    assert tokens == sorted(tokens, reverse=True), "stock's buffer of outputs is as large as the first graph"


@pytest.mark.parametrize(("most", "max_num_seqs"), SIZES)
def test_the_draft_chain_has_a_graph_for_every_number_of_requests(engine, most, max_num_seqs):
    chain = of_chain(engine(most, max_num_seqs)[0])
    complete(chain, is_chain=True)
    assert missed(chain, max_num_seqs) == []


@pytest.mark.parametrize(("most", "max_num_seqs"), [(4, 64), (8, 256)])
def test_steps_that_look_copies_up_have_graphs_beside_plain_ones(engine, most, max_num_seqs):
    (config, _), rows = engine(most, max_num_seqs), most
    chain = of_chain(config, rows)
    complete(chain, is_chain=True)
    graphs = chain._capture_descs[FULL]
    assert {graph.uniform_token_count for graph in graphs} == {1, rows}
    numbers = [request_counts(min(max_num_seqs, DEFAULT_LIMIT // length)) for length in (1, rows)]
    assert len(graphs) == sum(map(len, numbers))
    for num_reqs in range(1, min(max_num_seqs, DEFAULT_LIMIT // rows) + 1):
        for query_len in (1, rows):
            found = dispatch(chain, num_reqs, query_len)
            assert (found.cg_mode, found.uniform_token_count) == (FULL, query_len)


def test_stock_misses_batches_of_the_draft_chain(engine):
    assert missed(of_chain(engine(4, 3)[0]), 3) == [(1, 3)]


@pytest.mark.skipif(Version(vllm_version) >= Version("0.32"), reason="mended in 0.32")
def test_naming_every_k_breaks_the_draft_chain(engine):
    config, _ = engine(4, 64, schedule=every_k(4, 64))
    with pytest.raises(ZeroDivisionError):
        of_chain(config)


@pytest.mark.parametrize("limit", [None, 9 * 256])
def test_piecewise_graphs_are_those_without_speculation_and_sparse_beyond_the_default(engine, limit):
    manager, plain = of_policy(*engine(8, 256, limit=limit)), of_policy(*engine(0, 256, limit=DEFAULT_LIMIT))
    num_stock = len(manager._capture_descs[PIECEWISE])
    complete(manager)
    sizes = [graph.num_tokens for graph in manager._capture_descs[PIECEWISE]]
    assert sizes == sorted(sizes, reverse=True)
    assert [size for size in sizes if size <= DEFAULT_LIMIT] == [
        graph.num_tokens for graph in plain._capture_descs[PIECEWISE]
    ]
    assert [size for size in sizes if size > DEFAULT_LIMIT] == ([2304, 2048, 1536, 1024, 768] if limit else [])
    assert num_stock > (2 if limit else 1) * len(sizes)
    manager._graphs_captured = True
    for tokens in range(1, max(sizes) + 1):
        found = manager.dispatch(min(tokens, 256), tokens, None, 0)
        assert (found.cg_mode, found.num_tokens) == (PIECEWISE, min(size for size in sizes if size >= tokens))


# An estimate, of policies of 7 B parameters: a warm-up, a capture, and what stock does around them.
SECONDS_PER_GRAPH = 0.2
# Requests, most drafts -> full graphs under vLLM's default limit of 512 tokens; where every batch has one; and with
# stock's grid for every number of drafts, every batch.
COUNTS = {
    (64, 4): (56, 56, 66),
    (64, 8): (92, 92, 110),
    (256, 4): (95, 100, 210),
    (256, 8): (133, 152, 350),
    (1024, 4): (113, 168, 498),
    (1024, 8): (151, 236, 830),
}


@pytest.mark.parametrize(("max_num_seqs", "most"), COUNTS)
def test_numbers_of_graphs_and_seconds_of_start(engine, max_num_seqs, most, repository):
    """The table of docs/gpu.md, and what stock's managers hold once they were completed."""
    every, dense = capture_limit(most, max_num_seqs) or DEFAULT_LIMIT, len(request_counts(max_num_seqs, is_dense=True))
    counts = COUNTS[max_num_seqs, most]
    assert counts[2] == (most + 2) * dense
    for limit, expected in ((None, counts[0]), (every, counts[1])):
        config, mode = engine(most, max_num_seqs, limit=limit)
        manager, chain = of_policy(config, mode), of_chain(config)
        complete(manager)
        complete(chain, is_chain=True)
        assert len(manager._capture_descs[FULL]) + len(chain._capture_descs[FULL]) == expected
    row = f"| {max_num_seqs} | {most} | " + " | ".join(f"{n}, {n * SECONDS_PER_GRAPH:.0f} s" for n in counts) + " |"
    assert row in (repository / "docs" / "gpu.md").read_text()


def test_no_graph_is_larger_than_the_limit(engine):
    manager = of_policy(*engine(8, 64))
    complete(manager)
    assert missed(manager, 64) == [(9, num_reqs) for num_reqs in range(57, 65)]
    assert max(graph.num_tokens for graph in manager._capture_descs[FULL]) <= DEFAULT_LIMIT


@pytest.mark.parametrize(("most", "max_num_seqs"), [(8, 64), (4, 103), (2, 333)])
def test_stock_keeps_the_limit_it_is_given(engine, most, max_num_seqs):
    limit = capture_limit(most, max_num_seqs)
    assert limit >= (most + 1) * max_num_seqs
    assert engine(most, max_num_seqs, limit=limit)[0].compilation_config.max_cudagraph_capture_size == limit


def test_adapters_have_graphs_of_their_own(engine):
    manager = of_policy(*engine(2, 8), lora_capture_cases=[0, 1, 4])
    complete(manager)
    manager._graphs_captured = True
    for active, case in ((0, 0), (1, 1), (3, 4)):
        found = manager.dispatch(5, 10, 2, active, max_query_len=2)
        assert (found.cg_mode, found.num_tokens, found.num_active_loras) == (FULL, 16, case)


WITHOUT_DRAFTS = [(0, max_num_seqs, {}) for max_num_seqs in (1, 3, 64, 300)]
WITHOUT_FULL_GRAPHS = [(4, 64, {"mode": mode}) for mode in (CUDAGraphMode.NONE, PIECEWISE)]


@pytest.mark.parametrize(("most", "max_num_seqs", "options"), [*WITHOUT_DRAFTS, *WITHOUT_FULL_GRAPHS])
def test_an_engine_without_drafts_or_without_full_graphs_keeps_stocks(engine, most, max_num_seqs, options):
    manager = of_policy(*engine(most, max_num_seqs, **options))
    before = dict(manager._capture_descs)
    complete(manager)
    assert manager._capture_descs == before


def test_graphs_of_any_mix_of_lengths_stay(engine):
    manager = of_policy(*engine(4, 64), varlen_decode=True)
    before = list(manager._capture_descs[FULL])
    complete(manager)
    assert manager._capture_descs[FULL] == before


def test_completing_twice_changes_nothing_not_even_late(engine):
    manager = of_policy(*engine(4, 64))
    complete(manager)
    candidates = dict(manager._candidates)
    manager._graphs_captured = True
    complete(manager)
    assert manager._candidates == candidates


def test_too_late_is_refused(engine):
    manager = of_policy(*engine(4, 64))
    manager._graphs_captured = True
    with pytest.raises(UnsupportedVersionError, match="before they were completed"):
        complete(manager)


def test_a_manager_of_another_kind_is_refused():
    with pytest.raises(UnsupportedVersionError, match=r"SimpleNamespace has no _candidates, .*varlen_decode"):
        complete(SimpleNamespace())
