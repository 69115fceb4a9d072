"""What this package overrides in vLLM has the signature it relies on; `test_symbols.py` says that it is there."""

import inspect

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_scheduler_indexes_its_lookup_once_per_tick():
    from vllm.v1.core.sched.scheduler import Scheduler

    source = inspect.getsource(Scheduler.schedule)
    assert source.count("self.dynamic_sd_lookup[") == 1
    assert "num_spec_tokens_to_schedule=num_spec_tokens_to_schedule" in source


def test_drafts_are_counted_between_two_methods_that_the_scheduler_calls_in_turn():
    from vllm.v1.core.sched.scheduler import Scheduler

    from efficient_rollout.engine.scheduler import Controlled

    assert parameters(Controlled.make_spec_decoding_stats) == parameters(Scheduler.make_spec_decoding_stats)
    assert (
        parameters(Controlled._update_request_with_output)[:3] == parameters(Scheduler._update_request_with_output)[:3]
    )
    source = inspect.getsource(Scheduler.update_from_output)
    assert source.count("self.make_spec_decoding_stats(") == source.count("self._update_request_with_output(") == 1
    assert source.index("self.make_spec_decoding_stats(") < source.index("self._update_request_with_output(")


def test_proposer_has_the_signature_the_self_drafter_overrides():
    from vllm.v1.spec_decode.draft_model import DraftModelProposer

    from efficient_rollout.engine.cpu.proposer import SelfDraftProposer

    assert parameters(SelfDraftProposer.propose) == parameters(DraftModelProposer.propose)
    for method in ("load_model", "initialize_attn_backend", "_get_model", "_create_draft_vllm_config"):
        assert parameters(getattr(SelfDraftProposer, method)) == parameters(getattr(DraftModelProposer, method))


def test_quantization_hooks_have_the_signature_the_taps_override():
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    for method in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod):
        assert parameters(method.process_weights_after_loading) == ["self", "layer"]


def test_every_door_for_new_weights_is_known():
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory
    from vllm.v1.worker.gpu_worker import Worker

    from efficient_rollout.engine import checks
    from efficient_rollout.engine.weights.doors import WeightDoors

    doors = {name for name, _ in inspect.getmembers(Worker, callable) if "weight" in name and not name.startswith("_")}
    loading_nothing = {"init_weight_transfer_engine", "shutdown_weight_transfer_engine", "compute_weight_checksums"}
    assert doors - vars(WeightDoors).keys() <= loading_nothing
    of_these_tests = {"files"}
    assert WeightTransferEngineFactory._registry.keys() - of_these_tests <= checks._GPU_TRANSFERS, "may run on a CPU"


def test_a_reload_wraps_loaders_so_that_they_can_be_watched_and_undone():
    from vllm.model_executor.model_loader.reload import layerwise
    from vllm.v1.worker.gpu_worker import Worker

    source = inspect.getsource(layerwise)
    assert 'loader.__name__ == "online_process_loader"' in source
    assert "loader.__wrapped__" in source
    assert parameters(layerwise._place_kernel_tensors) == ["layer", "info"]
    assert {"load_model", "reload_weights", "_check_weight_transfer_engine"} <= vars(Worker).keys()
    assert "self._weight_update_active" in inspect.getsource(Worker)


def test_ledger_applies_twice_without_harm():
    from efficient_rollout.engine import ledger

    ledger.apply()
    ledger.apply()
    assert {row["state"] for row in ledger.status()} <= {"applied", "not needed"}


def test_entry_point_is_the_one_vllm_loads():
    from importlib.metadata import entry_points

    from efficient_rollout.engine import register

    (entry,) = [e for e in entry_points(group="vllm.general_plugins") if e.name == "efficient_rollout"]
    entry.load()()
    entry.load()()
    assert register.is_registered()
