"""Everything of vLLM's that this package subclasses, calls or replaces is there, with the signature it relies on."""

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
    for method in ("update_from_output", "update_draft_token_ids", "reset_prefix_cache"):
        assert callable(getattr(Scheduler, method))


def test_proposer_has_the_signature_the_self_drafter_overrides():
    from vllm.v1.spec_decode.draft_model import DraftModelProposer

    from efficient_rollout.vllm_plugin.proposer import SelfDraftProposer

    assert parameters(SelfDraftProposer.propose) == parameters(DraftModelProposer.propose)
    for method in ("load_model", "initialize_attn_backend", "_get_model", "_create_draft_vllm_config"):
        assert parameters(getattr(SelfDraftProposer, method)) == parameters(getattr(DraftModelProposer, method))
    for method in ("build_per_group_and_layer_attn_metadata", "_get_slot_mapping"):
        assert callable(getattr(DraftModelProposer, method))


def test_worker_and_runner_have_the_hooks():
    from vllm.v1.worker.cpu_worker import CPUWorker
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    for method in ("init_device", "execute_model", "sample_tokens"):
        assert callable(getattr(CPUWorker, method))
    source = inspect.getsource(GPUModelRunner)
    assert "take_last_draft_probs" in source
    assert "effective_drafter_max_model_len" in source


def test_quantization_hooks_and_layerwise_reload_are_there():
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    for method in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod):
        assert parameters(method.process_weights_after_loading) == ["self", "layer"]
    assert callable(initialize_layerwise_reload)
    assert callable(finalize_layerwise_reload)


def test_ledger_applies_twice_without_harm_and_cures_the_fault_it_names():
    import torch
    import vllm.v1.sample.rejection_sampler as rejection_sampler

    from efficient_rollout.vllm_plugin import ledger

    ledger.apply()
    ledger.apply()
    assert {row["state"] for row in ledger.status()} <= {"applied", "not needed"}
    counts = torch.tensor([2, 2, 5])
    temperatures = torch.tensor([0.5, 0.7, 0.0])
    expanded = rejection_sampler.expand_batch_to_tokens(temperatures, counts, 5, replace_from=0, replace_to=1)
    assert expanded.tolist() == pytest.approx([0.5, 0.5, 1.0, 1.0, 1.0])
    assert rejection_sampler.expand_batch_to_tokens(torch.tensor([3, 4, 5]), counts, 5).tolist() == [3, 3, 5, 5, 5]


def test_entry_point_is_the_one_vllm_loads():
    from importlib.metadata import entry_points

    from efficient_rollout.vllm_plugin import register

    (entry,) = [e for e in entry_points(group="vllm.general_plugins") if e.name == "efficient_rollout"]
    entry.load()()
    entry.load()()
    assert register.is_registered()
