"""Every name of vLLM's that this package imports, calls, overrides or reads, on vLLM's V1 runner and beside it.

Attributes are added by hand, behind the class they belong to. Doors that only some versions have, and this package
closes (`engine/weights/doors.py`), are not among them.
"""

from checked_names import names

# What an engine's own processes import in any case.
# Names that moved within the range of versions, the old and the new one in a row: one of them must be there.
MOVED: tuple[tuple[str, ...], ...] = ()

OF_ENGINES = names("""
    # Configuration.
    vllm.engine.arg_utils:EngineArgs additional_config async_scheduling distributed_executor_backend scheduler_cls
        speculative_config worker_cls
    vllm.config:VllmConfig additional_config compilation_config device_config lora_config model_config parallel_config
        quant_config speculative_config use_v2_model_runner
    vllm.config:CompilationConfig static_forward_context
    vllm.config:DeviceConfig device
    vllm.config:ModelConfig dtype hf_config logits_processors max_model_len model
    vllm.config:ParallelConfig data_parallel_index data_parallel_rank_local distributed_executor_backend
        pipeline_parallel_size tensor_parallel_size
    vllm.config:SpeculativeConfig target_parallel_config uses_draft_model
    vllm.config:set_current_vllm_config
    vllm.config.utils:replace
    vllm.distributed.utils:stateless_init_torch_distributed_process_group
    vllm:envs.VLLM_CPU_NUM_OF_RESERVED_CPU
    vllm:envs.VLLM_CPU_OMP_THREADS_BIND
    vllm.utils.cpu_resource_utils:LogicalCPUInfo id numa_node physical_core
    vllm.triton_utils:HAS_TRITON
    vllm.utils.cpu_resource_utils:get_allowed_cpu_list
    vllm.utils.cpu_resource_utils:get_visible_memory_node
    vllm.platforms:current_platform device_type get_device_capability get_device_name import_kernels is_cpu is_cuda
        is_unspecified
    # Scheduling.
    vllm.v1.core.sched.scheduler:Scheduler _free_request _update_request_with_output dynamic_sd_lookup finish_requests
        has_unfinished_requests log_stats make_spec_decoding_stats num_spec_tokens requests reset_prefix_cache running
        schedule update_from_output vllm_config waiting
    vllm.v1.core.sched.output:SchedulerOutput finished_req_ids num_scheduled_tokens num_spec_tokens_to_schedule
        scheduled_new_reqs scheduled_spec_decode_tokens total_num_scheduled_tokens
    vllm.v1.core.sched.output:NewRequestData req_id
    vllm.v1.engine:EngineCoreOutput events finish_reason kv_transfer_params new_logprobs new_prompt_logprobs_tensors
        new_token_ids prefill_stats request_id stop_reason
    vllm.v1.engine:EngineCoreOutputs outputs
    vllm.v1.outputs:DraftTokenIds draft_token_ids req_ids
    vllm.v1.outputs:LogprobsLists slice_request
    vllm.v1.outputs:LogprobsTensors logprob_token_ids logprobs selected_token_ranks
    vllm.v1.outputs:SamplerOutput logprobs_tensors sampled_token_ids
    vllm.v1.outputs:ModelRunnerOutput logprobs pooler_output prompt_logprobs_dict req_id_to_index req_ids
        sampled_token_ids
    vllm.v1.request:Request client_index get_finished_reason is_finished num_computed_tokens num_output_tokens
        num_prompt_tokens num_tokens request_id sampling_params spec_token_ids use_structured_output
    vllm.v1.request:RequestStatus FINISHED_ERROR
    vllm.v1.kv_cache_interface:KVCacheSpec
    # Executor, worker and runner.
    vllm.v1.executor.multiproc_executor:MultiprocExecutor collective_rpc execute_model is_failed response_mqs
        rpc_broadcast_mq sample_tokens take_draft_token_ids world_size
    vllm.v1.executor.multiproc_executor:WorkerProc ResponseStatus
    vllm.v1.executor.ray_executor_v2:RayExecutorV2 _init_executor collective_rpc execute_model
    vllm.v1.executor.uniproc_executor:UniProcExecutor
    vllm:envs.disable_envs_cache
    vllm.distributed.device_communicators.shm_broadcast:MessageQueue dequeue enqueue
    vllm.distributed:get_tensor_model_parallel_rank
    vllm.distributed:get_tensor_model_parallel_world_size
    vllm.distributed:get_tp_group
    vllm.distributed.parallel_state:GroupCoordinator.cpu_group
    vllm.distributed:tensor_model_parallel_all_reduce
    vllm.v1.worker.cpu_worker:CPUWorker device execute_model init_device model_config finish_weight_update
        get_kv_cache_spec load_model model_runner reload_weights sample_tokens start_weight_update update_weights
        vllm_config weight_transfer_engine
    vllm.v1.worker.cpu_model_runner:CPUModelRunner discard_request_mask drafter effective_drafter_max_model_len
        get_model input_batch rejection_sampler requests sampler speculative_config take_draft_token_ids vllm_config
    vllm.v1.worker.gpu_input_batch:InputBatch _make_sampling_metadata block_table generators logitsprocs
        logitsprocs_need_output_token_ids num_prompt_tokens num_reqs num_tokens_no_spec req_ids req_output_token_ids
        sampling_metadata spec_token_ids
    vllm.v1.worker.gpu_input_batch:CachedRequestState generator sampling_params
    vllm.v1.worker.block_table:BlockTable.num_blocks_per_row
    vllm.v1.worker.block_table:MultiGroupBlockTable.__getitem__
    # Drafting and sampling.
    vllm.v1.spec_decode.draft_model:DraftModelProposer _create_draft_vllm_config _draft_attn_layer_names _get_model
        _get_slot_mapping _slot_mapping_buffer arange block_size build_per_group_and_layer_attn_metadata device dtype
        initialize_attn_backend input_ids kv_cache_gid load_model max_model_len model num_speculative_tokens positions
        propose token_arange_np vllm_config
    vllm.v1.worker.utils:AttentionGroup create_metadata_builders get_metadata_builder layer_names
    vllm.v1.spec_decode.utils:PADDING_SLOT_ID
    vllm.forward_context:set_forward_context
    vllm.v1.sample.metadata:SamplingMetadata all_greedy allowed_token_ids_mask bad_words_token_ids frequency_penalties
        generators logitsprocs max_num_logprobs no_penalties output_token_ids presence_penalties prompt_token_ids
        repetition_penalties spec_token_ids temperature thinking_budget_state_holder top_k top_p
    vllm.v1.sample.sampler:Sampler forward topk_topp_sampler
    vllm.v1.spec_decode.metadata:SpecDecodeMetadata draft_token_ids num_draft_tokens
    vllm.v1.spec_decode.metrics:SpecDecodingStats new observe_draft
    vllm.v1.sample.rejection_sampler:PLACEHOLDER_TOKEN_ID
    vllm.v1.sample.logits_processor:AdapterLogitsProcessor req_info
    vllm.v1.sample.logits_processor:LogitBiasLogitsProcessor biases
    vllm.v1.sample.logits_processor:LogitsProcessors all
    vllm.v1.sample.logits_processor:MinPLogitsProcessor min_p_count
    vllm.v1.sample.logits_processor:MinTokensLogitsProcessor min_toks
    vllm.v1.sample.logits_processor:LogitsProcessor apply is_argmax_invariant update_state
    vllm.v1.sample.logits_processor:build_logitsprocs
    vllm.sampling_params:SamplingParams _validate_spec_decode clone extra_args
    vllm.exceptions:VLLMValidationError
    vllm.v1.sample.ops.topk_topp_sampler:apply_top_k_top_p
    vllm.compilation.decorators:_try_load_aot_compiled_fn
    # Attention.
    vllm.model_executor.layers.attention.attention:Attention impl kv_sharing_target_layer_name
    vllm.v1.attention.backend:AttentionType DECODER
    vllm.v1.attention.backend:CommonAttentionMetadata batch_size block_table_tensor max_query_len max_seq_len
        num_actual_tokens query_start_loc query_start_loc_cpu seq_lens slot_mapping
    vllm.v1.attention.backends.cpu_attn:CPUAttentionBackend get_impl_cls
    vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl alibi_slopes attn_type forward head_size
        is_fp8_kv_cache logits_soft_cap scale sinks sliding_window
    vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadata block_table causal max_seq_len query_start_loc seq_lens
    vllm.v1.attention.backends.registry:AttentionBackendEnum CPU_ATTN
    vllm.v1.attention.backends.registry:register_backend
    # Layers, and loading weights into them.
    vllm.model_executor.layers.linear:LinearBase input_size output_size quant_method tp_rank tp_size
    vllm.model_executor.layers.linear:ColumnParallelLinear output_partition_sizes
    vllm.model_executor.layers.linear:ReplicatedLinear output_partition_sizes
    vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding shard_indices
    vllm.model_executor.layers.linear:QKVParallelLinear head_size total_num_heads total_num_kv_heads v_head_size
    vllm.model_executor.layers.linear:RowParallelLinear input_size_per_partition output_size_per_partition tp_rank
    vllm.model_executor.layers.linear:LinearMethodBase apply create_weights
    vllm.model_executor.layers.linear:UnquantizedLinearMethod process_weights_after_loading
    vllm.model_executor.layers.quantization.base_config:QuantizationConfig get_quant_method
    vllm.model_executor.layers.quantization.base_config:QuantizeMethodBase embedding tie_weights
    vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm.cpu_linear
    vllm.model_executor.layers.vocab_parallel_embedding:ParallelLMHead bias quant_method
    vllm.model_executor.layers.vocab_parallel_embedding:UnquantizedEmbeddingMethod process_weights_after_loading
    vllm.model_executor.model_loader:get_model_loader
    vllm.model_executor.model_loader.reload:finalize_layerwise_reload
    vllm.model_executor.model_loader.reload:initialize_layerwise_reload
    vllm.model_executor.model_loader.reload.layerwise:LOADING_LAYERS
    vllm.model_executor.model_loader.reload.layerwise:_place_kernel_tensors
    vllm.model_executor.model_loader.reload.layerwise:get_layerwise_info
    vllm.model_executor.model_loader.weight_utils:default_weight_loader
    vllm.model_executor.model_loader.utils:initialize_model
    vllm.tracing:instrument_manual
    vllm.utils.torch_utils:set_default_torch_dtype
""")

# What only a server of several engines needs.
OF_SERVERS = names("""
    vllm.v1.engine.async_llm:AsyncLLM engine_core vllm_config
    vllm.v1.engine.core_client:AsyncMPClient _call_utility_async core_engines engine_ranks_managed
    vllm.config:ModelConfig.served_model_name
    vllm.entrypoints.cli.serve:ServeSubcommand cmd subparser_init validate
    vllm.entrypoints.serve.utils.api_utils:cli_env_setup
    vllm.utils.argparse_utils:FlexibleArgumentParser
""")

# What only the measuring gear needs.
OF_MEASURING = names("""
    vllm:LLM collective_rpc llm_engine reset_prefix_cache
    vllm.v1.engine.llm_engine:LLMEngine abort_request add_request engine_core has_unfinished_requests step vllm_config
    vllm:SamplingParams
    vllm.sampling_params:RequestOutputKind FINAL_ONLY
    vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm
    vllm.model_executor.model_loader.weight_utils:safetensors_weights_iterator
    vllm.v1.core.kv_cache_manager:KVCacheManager.allocate_slots
    vllm.v1.core.sched.scheduler:Scheduler add_request kv_cache_manager
    vllm.v1.worker.cpu_model_runner:CPUModelRunner _model_forward _sample
    vllm.v1.worker.cpu_worker:CPUWorker.reload_weights
""")
