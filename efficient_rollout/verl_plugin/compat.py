"""Is the installed veRL one this package was made for? All faults in one message."""

import importlib
import importlib.metadata
from collections.abc import Iterable

from packaging.requirements import Requirement

from efficient_rollout.errors import UnsupportedVersionError

REQUIRED_SYMBOLS = (
    "verl.plugin.platform:PlatformBase.is_ipc_supported",
    "verl.plugin.platform:PlatformBase.rollout_env_vars",
    "verl.plugin.platform:PlatformRegistry.register",
    "verl.plugin.platform:get_platform",
    "verl.trainer.main_ppo:TaskRunnerV1",
    "verl.trainer.main_ppo:run_ppo",
    "verl.trainer.main_ppo_v0:TaskRunner",
    "verl.trainer.ppo.utils:need_critic",
    "verl.trainer.ppo.utils:need_reference_policy",
    "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer",
    "verl.utils.config:validate_config",
    "verl.utils.distributed:initialize_global_process_group_ray",
    "verl.utils.model:load_valuehead_model",
    "verl.utils.tracking:Tracking.log",
    "verl.workers.rollout.base:_ROLLOUT_REGISTRY",
    "verl.workers.rollout.replica:RolloutReplicaRegistry.register",
    "verl.workers.rollout.vllm_rollout:ServerAdapter._get_server_name_prefix",
    "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer:BucketedWeightReceiver.receive_weights",
    "verl.workers.rollout.vllm_rollout.utils:vLLMColocateWorkerExtension.update_weights_from_ipc",
    "verl.workers.rollout.vllm_rollout.utils:vLLMColocateWorkerExtension._get_zmq_handle",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer._get_worker_extension_cls",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer._preprocess_engine_kwargs",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer.collective_rpc",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer.generate",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMReplica._get_server_name_prefix",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMReplica.launch_servers",
)


def verl_requirement() -> Requirement:
    """The supported versions, as this distribution's `verl` extra states them."""
    for text in importlib.metadata.requires("efficient-rollout") or ():
        requirement = Requirement(text)
        if requirement.name == "verl":
            return requirement
    raise UnsupportedVersionError("the installed metadata of efficient-rollout names no veRL version: reinstall it")


def check_versions() -> None:
    """Refuse a veRL that is missing or outside the supported range.

    Raises:
        UnsupportedVersionError: Names the installed version, the range, and what to install.
    """
    supported = verl_requirement().specifier
    try:
        installed = importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError:
        raise UnsupportedVersionError(f"veRL is not installed: pip install 'verl{supported}'") from None
    if not supported.contains(installed, prereleases=True):
        raise UnsupportedVersionError(
            f"veRL {installed} is not supported (supported: {supported}): pip install 'verl{supported}'"
        )


def check_symbols(required: Iterable[str] = REQUIRED_SYMBOLS) -> None:
    """Refuse a veRL that lacks something this package stands on.

    Raises:
        UnsupportedVersionError: Lists everything that is missing.
    """
    missing = [name for name in required if not _exists(name)]
    if missing:
        raise UnsupportedVersionError(
            f"veRL {importlib.metadata.version('verl')} lacks what efficient_rollout uses: {', '.join(missing)}. "
            f"Install a supported version: pip install 'verl{verl_requirement().specifier}'"
        )


def _exists(name: str) -> bool:
    module_name, _, path = name.partition(":")
    try:
        found = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return False
    return True
