"""Every name of vLLM's V2 runner that this package uses, and the parameters between them.

Beside `names_of_vllm.py`, whose names count for every engine. The operators of a CUDA build are listed in
`efficient_rollout/gpu_check/products.py`; scripts/gpu_contract.py holds a wheel against both, without a GPU.
"""

import importlib
from collections.abc import Iterator

from checked_callbacks import callback_breaches
from checked_names import call_breaches, missing, names, override_breaches

from efficient_rollout.engine.gpu.graphs import MANAGER_ATTRIBUTES

_GPU = "vllm.v1.worker.gpu."
_SPECULATOR = f"{_GPU}spec_decode.speculator:DraftModelSpeculator"
_REJECTION = f"{_GPU}spec_decode.rejection_sampler:RejectionSampler"
_SAMPLER = f"{_GPU}sample.sampler:Sampler"
_RUNNER = f"{_GPU}model_runner:GPUModelRunner"
_WORKER = "vllm.v1.worker.gpu_worker:Worker"
_OURS = "efficient_rollout.engine.gpu."
_FLASH = "vllm.v1.attention.backends.flash_attn:FlashAttentionMetadataBuilder"

OF_V2 = names(f"""
    vllm.config:CompilationConfig cudagraph_capture_sizes max_cudagraph_capture_size static_forward_context
    vllm.config.compilation:CUDAGraphMode FULL FULL_AND_PIECEWISE FULL_DECODE_ONLY NONE decode_mode separate_routine
    vllm.config:SpeculativeConfig draft_model_config draft_parallel_config num_speculative_tokens
    vllm.compilation.backends:set_model_tag
    vllm.config:replace
    vllm.utils.import_utils:import_pynvml
    vllm.utils.torch_utils:set_random_seed
    # Runner and worker.
    {_RUNNER} adaptive_verification block_tables capture_model cudagraph_manager device execute_model
        get_kv_cache_spec initialize_kv_cache input_buffers load_model model model_state rejection_sampler req_states
        sample_tokens sampler speculator
    {_WORKER} compile_or_warm_up_model determine_available_memory device execute_model init_device
        initialize_from_config load_model model_runner rank sample_tokens shutdown sleep vllm_config wake_up
    vllm.device_allocator.cumem:CuMemAllocator discard get_instance sleep use_memory_pool wake_up
    vllm.v1.core.sched.async_scheduler:AsyncScheduler._update_after_schedule
    vllm.sampling_params:SamplingParams allowed_token_ids bad_words frequency_penalty logit_bias min_p min_tokens
        presence_penalty repetition_penalty top_k top_p
    vllm.v1.kv_cache_interface:KVCacheConfig
    vllm.v1.outputs:AsyncModelRunnerOutput.get_output
    # Graphs.
    {_GPU}cudagraph_utils:CudaGraphManager {" ".join(MANAGER_ATTRIBUTES)} dispatch run_fullgraph
    {_GPU}cudagraph_utils:ModelCudaGraphManager
    {_GPU}cudagraph_utils:BatchExecutionDescriptor cg_mode max_query_len num_active_loras num_reqs num_tokens
        num_ubatches uniform_token_count
    # Drafting.
    {_SPECULATOR} _build_uniform_attn_metadata _copy_request_inputs attn_groups block_tables capture dp_rank dp_size
        draft_logits draft_model_config draft_tokens idx_mapping init_cudagraph_manager input_buffers kv_cache_config
        load_draft_model max_model_len max_num_reqs max_num_tokens model model_state num_speculative_steps propose
        sample_draft seeds set_attn speculative_config temperature use_fp64_gumbel vllm_config vocab_size
    {_GPU}input_batch:InputBuffers input_ids positions query_start_loc seq_lens
    {_GPU}input_batch:InputBatch cu_num_logits cu_num_logits_np expanded_idx_mapping expanded_local_pos idx_mapping
        idx_mapping_np input_ids logits_indices num_reqs positions seq_lens seq_lens_cpu_upper_bound
    vllm.v1.worker.utils:AttentionGroup layer_names supports_draft_decode_metadata_update
    {_FLASH}.supports_draft_decode_metadata_update
    # Sampling.
    {_REJECTION} _get_logprobs_tensors _verify num_speculative_steps sampler
    {_SAMPLER} apply_sampling_params compute_nans logprobs_mode req_states sample sampling_states use_flashinfer
    {_GPU}sample.states:SamplingStates max_num_logprobs seeds temperature
    vllm.v1.attention.backends.utils:PAD_SLOT_ID
    {_GPU}buffer_utils:StagedWriteTensor.gpu
    {_GPU}states:RequestState all_token_ids draft_tokens last_sampled_tokens prefill_len
""")
# Names that moved: one of a row must be there. From 0.32 on, the later ones are.
MOVED = (
    (
        f"{_GPU}spec_decode.autoregressive.cudagraph_utils:SpeculatorCudaGraphManager",
        f"{_GPU}spec_decode.target_dependent_ar.cudagraph_utils:SpeculatorCudaGraphManager",
    ),
    (
        f"{_GPU}spec_decode.draft_model.speculator:PlainDraftModelSpeculator._run_model",
        f"{_GPU}spec_decode.standalone_ar.speculator:StandaloneARSpeculator._run_model",
    ),
)
_LOGITS = "logits expanded_idx_mapping idx_mapping idx_mapping_np pos input_ids expanded_local_pos "
# What we call -> what we pass: the first parameters by position, those behind the star by name.
CALLED = {
    f"{_SPECULATOR}._build_uniform_attn_metadata": "* batch_desc num_reqs num_query_per_req seq_lens_cpu_upper_bound "
    "step",
    f"{_SPECULATOR}._copy_request_inputs": "num_reqs idx_mapping temperature seeds * dummy_run",
    f"{_SPECULATOR}.sample_draft": "hidden_states sample_src_positions idx_mapping temperature seeds draft_step "
    "draft_logits",
    f"{_GPU}dp_utils:dispatch_cg_and_sync_dp": "cudagraph_manager num_reqs num_tokens * uniform_token_count dp_size "
    "dp_rank need_eager",
    f"{_GPU}block_table:BlockTables.compute_slot_mappings": "idx_mapping query_start_loc positions num_tokens_padded",
    f"{_GPU}attn_utils:build_slot_mappings_by_layer": "slot_mappings kv_cache_config",
    f"{_GPU}cudagraph_utils:CudaGraphManager.run_fullgraph": "desc",
    f"{_GPU}cudagraph_utils:CudaGraphManager.dispatch": "num_reqs num_tokens uniform_token_count num_active_loras * "
    "max_query_len",
    f"{_GPU}cudagraph_utils:CudaGraphManager._maybe_ubatch_twin": "desc",
    f"{_GPU}cudagraph_utils:CudaGraphManager": "vllm_config device cudagraph_mode * decode_query_len",
    f"{_GPU}cudagraph_utils:BatchExecutionDescriptor": "* cg_mode num_tokens num_reqs uniform_token_count "
    "num_active_loras",
    "vllm.v1.worker.utils:AttentionGroup.update_draft_decode_metadata": "attn_metadata",
    f"{_FLASH}.update_draft_decode_metadata": "metadata",
    f"{_SAMPLER}.sample": f"{_LOGITS}seq_lens_upper_bound_np * return_logprobs",
    f"{_SAMPLER}.apply_sampling_params": f"{_LOGITS}seq_lens_upper_bound_np",
    f"{_GPU}sample.gumbel:gumbel_sample": "logits expanded_idx_mapping temperature seed pos * apply_temperature "
    "is_drafting use_fp64",
    f"{_GPU}spec_decode.rejection_sampler:gather_draft_sampled": "input_ids positions logits_indices "
    "expanded_idx_mapping expanded_local_pos prefill_len",
    f"{_GPU}input_batch:get_num_sampled_and_rejected": "num_sampled seq_lens cu_num_logits idx_mapping prefill_len",
    f"{_REJECTION}._get_logprobs_tensors": "sampled num_sampled logits cu_num_logits cu_num_logits_np max_num_logprobs",
    f"{_RUNNER}.initialize_kv_cache": "kv_cache_config * is_profiling",
    f"{_WORKER}.sleep": "level",
    f"{_WORKER}.wake_up": "tags",
    "vllm.device_allocator.cumem:CuMemAllocator.use_memory_pool": "* tag",
    "vllm.model_executor.model_loader.utils:process_weights_after_loading": "model model_config target_device",
}
# What we override -> with what.
OVERRIDDEN = {
    f"{theirs}.{method}": f"{_OURS}{ours}.{method}"
    for theirs, ours, methods in (
        (_SPECULATOR, "speculator:SelfDraftSpeculator", "propose load_draft_model init_cudagraph_manager capture"),
        (_REJECTION, "verifier:SharedNoiseVerifier", "_verify"),
        (_WORKER, "worker:V2Worker", "init_device load_model initialize_from_config execute_model"),
        (_WORKER, "worker:V2Worker", "sample_tokens shutdown sleep"),
    )
    for method in methods.split()
}
# What stock calls back, and under which parameter's name -> what it is given. One of a row's first must be there.
CALLBACKS = (
    (
        (
            f"{_GPU}spec_decode.autoregressive.cudagraph_utils:SpeculatorCudaGraphManager.capture",
            f"{_GPU}spec_decode.target_dependent_ar.cudagraph_utils:SpeculatorCudaGraphManager.capture",
        ),
        "forward_fn",
        f"{_OURS}speculator:SelfDraftSpeculator._captured_step",
    ),
)


def breaches() -> Iterator[str]:
    """What of the tables above the importable vLLM does not have, or has otherwise; a sentence each.

    Imports the runner's modules, and ours that override them.
    """
    yield from (f"{name} is missing" for name in missing(OF_V2))
    yield from (f"{' or '.join(moved)} is missing" for moved in MOVED if len(missing(moved)) == len(moved))
    for target, passed in CALLED.items():
        yield from (f"{target} {what}" for what in call_breaches(target, passed))
    for module in sorted({ours.partition(":")[0] for ours in OVERRIDDEN.values()}):
        of_module = {target: ours for target, ours in OVERRIDDEN.items() if ours.startswith(f"{module}:")}
        try:
            importlib.import_module(module)
        except ImportError as error:
            yield f"{module} cannot be imported: {error}"
            continue
        for target, ours in of_module.items():
            yield from (f"{target} {what}" for what in override_breaches(target, ours))
    for targets, parameter, ours in CALLBACKS:
        target = next((name for name in targets if not missing((name,))), targets[0])
        yield from (f"{target} {what}" for what in callback_breaches(target, parameter, ours))
