"""CUDA graphs of draft steps: stock's real `capture`, its graphs recorded and replayed without CUDA.

Every token is the one that stock samples, and as many drafts are accepted as without graphs.
"""

import gc
import weakref

import pytest

pytest.importorskip("triton", reason="the CUDA path's tests need Triton: bash scripts/install.sh --triton")

import interpreted
from engine_support import sampling
from recorded_graphs import capture_draft_steps, record_graphs
from small_policies import SIZES, save_policy
from vllm.config.compilation import CUDAGraphMode

from efficient_rollout.engine.statistics import take_rollout_stats
from efficient_rollout.gpu_check.stand import worker_of
from efficient_rollout.measuring.offline import drain

VOCABULARY = SIZES["vocab_size"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("policy"))


def running(policy, scheme=None, most=3, **options):
    """An engine, stock without a scheme; ended behind the block."""
    drafter = None if scheme is None else {"scheme": scheme, "group_size": 128}
    return interpreted.running(policy, drafter, most, **options)


def sampled(engine, num_requests=4, num_tokens=14):
    """Responses to prompts of different lengths, every other one greedy, of which some end before others."""
    prompts = [
        [(7 * number + place) % VOCABULARY for place in range(5 + 9 * (number % 4))] for number in range(num_requests)
    ]
    parameters = [
        sampling(temperature=float(number % 2), seed=100 + number, max_tokens=num_tokens - number % 3)
        for number in range(num_requests)
    ]
    return interpreted.answers(engine, prompts, parameters)


def accepted(engine):
    """Accepted drafts of every position, since the last call; those of a last tick are told with a later one."""
    drain(engine)
    return take_rollout_stats(engine.collective_rpc).accepted_per_position


def assert_replays_are_the_eager_path(policy, monkeypatch, scheme, most, num_requests, **options):
    options |= {"max_num_seqs": num_requests}
    # A launch in the interpreter takes as long as it has requests.
    num_tokens = 14 if num_requests < 16 else 7
    with running(policy, **options) as stock:
        expected = sampled(stock, num_requests, num_tokens)
    with running(policy, scheme, most, **options) as engine:
        assert sampled(engine, num_requests, num_tokens) == expected
        eager = accepted(engine)
        graphs = record_graphs(monkeypatch)
        worker = worker_of(engine)
        capture_draft_steps(worker, (1, 2, 4, num_requests))
        assert graphs.host_reads == []
        assert sampled(engine, num_requests, num_tokens) == expected
        assert accepted(engine) == eager
        assert worker.health.drafter_fault is None
    assert sum(graph.num_replays for graph in graphs.recorded) > 5
    assert sum(eager) > 0


def test_replays_of_captured_steps_are_the_eager_path(policy, monkeypatch):
    assert_replays_are_the_eager_path(policy, monkeypatch, "int4", 3, 4)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int4", "unquantized"])
@pytest.mark.parametrize(("most", "num_requests"), [(1, 1), (1, 64), (4, 7), (8, 1), (8, 64)])
def test_replays_of_every_shape_are_the_eager_path(policy, monkeypatch, scheme, most, num_requests):
    """Scheduled one by one: else a tick behind a response's end may be counted, or not."""
    assert_replays_are_the_eager_path(policy, monkeypatch, scheme, most, num_requests, asynchronous=False)


def test_an_engine_that_was_shut_down_holds_neither_modules_nor_graphs(policy, monkeypatch):
    with running(policy, "int4") as engine:
        graphs = record_graphs(monkeypatch)
        worker = worker_of(engine)
        capture_draft_steps(worker, (1, 2))
        drafter = worker.self_drafter
        held = {
            "policy": worker.model_runner.get_model(),
            "drafter": drafter.model,
            "packed layer": next(iter(drafter.packed.layers.values())),
            "graph": graphs.recorded.pop(),
        }
        held = {name: weakref.ref(value) for name, value in held.items()}
        graphs.recorded.clear()
        del drafter
    gc.collect()
    assert [name for name, reference in held.items() if reference() is not None] == []
    worker.shutdown()  # twice does no harm


def test_what_is_captured_renews_slots_and_metadata(policy, monkeypatch):
    """In the recorded pass itself, of every graph: without that, replays would write where the last pass wrote."""
    with running(policy, "int8") as engine:
        assert_every_graph_renews(engine, monkeypatch)


def assert_every_graph_renews(engine, monkeypatch):
    graphs = record_graphs(monkeypatch)
    drafter = worker_of(engine).self_drafter
    renewed = {"slots": 0, "metadata": 0}
    slots, group = drafter.block_tables.compute_slot_mappings, type(drafter.attn_groups[0][0])
    update = group.update_draft_decode_metadata

    def counted(what, function):
        def call(*args, **kwargs):
            renewed[what] += graphs.recorder is not None
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(drafter.block_tables, "compute_slot_mappings", counted("slots", slots))
    monkeypatch.setattr(group, "update_draft_decode_metadata", counted("metadata", update))
    capture_draft_steps(worker_of(engine), (1, 2, 4, 8))
    num_groups = sum(len(groups) for groups in drafter.attn_groups)
    num_graphs = len(drafter._graphs._capture_descs[CUDAGraphMode.FULL])
    assert num_graphs == len(graphs.recorded) == len(drafter._graphs.graphs)
    assert num_graphs > drafter.num_speculative_steps, "a counter that warm-ups advance would leave the columns"
    assert renewed == {"slots": num_graphs, "metadata": num_graphs * num_groups}
    assert graphs.host_reads == []
    assert graphs.num_outside == 0
