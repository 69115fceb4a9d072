"""Is the installed veRL one this package was made for?"""

from efficient_rollout.provenance import package_versions
from efficient_rollout.upstream import check_version

# Every name of veRL's that this package imports, calls, overrides or reads: for the contract tests, which try each in a
# tested version. Trying them at a job's start would import its trainers and its server in every process that tries.
REQUIRED_SYMBOLS = (
    "verl.experimental.agent_loop.agent_loop:AgentLoopManager",
    "verl.experimental.agent_loop.agent_loop:AgentLoopWorker._run_agent_loop",
    "verl.plugin.platform:PlatformBase.is_ipc_supported",
    "verl.plugin.platform:PlatformBase.rollout_env_vars",
    "verl.plugin.platform:PlatformRegistry.register",
    "verl.plugin.platform:get_platform",
    "verl.trainer.constants_ppo:get_ppo_ray_runtime_env",
    "verl.trainer.main_ppo:TaskRunnerV1",
    "verl.trainer.main_ppo:run_ppo",
    "verl.trainer.main_ppo_v0:TaskRunner",
    "verl.trainer.ppo.utils:need_critic",
    "verl.trainer.ppo.utils:need_reference_policy",
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopManagerTQ",
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ",
    "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer",
    "verl.utils.config:validate_config",
    "verl.utils.device:auto_set_device",
    "verl.utils.distributed:initialize_global_process_group_ray",
    "verl.utils.model:load_valuehead_model",
    "verl.utils.tracking:Tracking.log",
    "verl.utils.tracking:Tracking.logger",
    "verl.workers.rollout.base:_ROLLOUT_REGISTRY",
    "verl.workers.rollout.replica:RolloutReplicaRegistry.register",
    "verl.workers.rollout.replica:TokenOutput",
    "verl.workers.rollout.vllm_rollout:ServerAdapter._get_server_name_prefix",
    "verl.workers.rollout.vllm_rollout:ServerAdapter.zmq_handle",
    "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer:BucketedWeightReceiver.receive_weights",
    "verl.workers.rollout.vllm_rollout.utils:vLLMColocateWorkerExtension.update_weights_from_ipc",
    "verl.workers.rollout.vllm_rollout.utils:vLLMColocateWorkerExtension._get_zmq_handle",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer._get_worker_extension_cls",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer._preprocess_engine_kwargs",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer.collective_rpc",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer.config",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer.engine",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer.generate",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer.model_config",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer.node_rank",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer.run_server",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMReplica._get_server_name_prefix",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMReplica.launch_servers",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMReplica.replica_rank",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMReplica.server_class",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMReplica.servers",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMReplica.workers",
)


def check_versions() -> None:
    """Refuse a veRL that is missing or outside the supported range.

    Raises:
        UnsupportedVersionError: Names the installed version, the range, and what to install.
    """
    check_version("verl", package_versions(("verl",)).get("verl"))
