"""Every name of veRL's that this package imports, calls, overrides or reads."""

from checked_names import names

OF_VERL = names("""
    verl.experimental.agent_loop.agent_loop:AgentLoopManager
    verl.experimental.agent_loop.agent_loop:AgentLoopWorker _run_agent_loop
    verl.plugin.platform:PlatformBase is_ipc_supported rollout_env_vars
    verl.plugin.platform:PlatformRegistry register
    verl.trainer.constants_ppo:get_ppo_ray_runtime_env
    verl.trainer.main_ppo:TaskRunnerV1
    verl.trainer.main_ppo:run_ppo
    verl.trainer.main_ppo_v0:TaskRunner
    verl.trainer.ppo.utils:need_critic
    verl.trainer.ppo.utils:need_reference_policy
    verl.trainer.ppo.v1.agent_loop_tq:AgentLoopManagerTQ
    verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ
    verl.trainer.ppo.v1.replay_buffer:ReplayBuffer
    verl.utils.checkpoint.checkpoint_manager:find_latest_ckpt_path
    verl.utils.config:validate_config
    verl.utils.device:auto_set_device
    verl.utils.distributed:initialize_global_process_group_ray
    verl.utils:tensordict_utils
    verl.utils.model:load_valuehead_model
    verl.utils.ray_utils:auto_await
    verl.utils.tensordict_utils:assign_non_tensor_stack
    verl.utils.tensordict_utils:get
    verl.utils.tracking:Tracking log logger
    verl.workers.rollout.base:_ROLLOUT_REGISTRY
    verl.workers.rollout.replica:RolloutReplicaRegistry register
    verl.workers.rollout.replica:TokenOutput
    verl.workers.rollout.utils:ensure_async_iterator
    verl.workers.rollout.vllm_rollout:ServerAdapter _get_server_name_prefix update_weights zmq_handle
    verl.workers.rollout.vllm_rollout.bucketed_weight_transfer:BucketedWeightReceiver receive_weights
    verl.workers.rollout.vllm_rollout.utils:vLLMColocateWorkerExtension update_weights_from_ipc _get_zmq_handle
    verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer _get_worker_extension_cls
        _preprocess_engine_kwargs collective_rpc config engine generate model_config node_rank run_server
    verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMReplica _get_server_name_prefix launch_servers
        replica_rank server_class servers workers
""")
