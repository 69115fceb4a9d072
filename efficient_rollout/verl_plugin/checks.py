"""Everything that can be known to be wrong before Ray starts, with the way out."""

import importlib
import inspect
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from efficient_rollout.config import Settings
from efficient_rollout.engine.environment import bind_workers
from efficient_rollout.errors import ConfigError, EfficientRolloutError, PluginInactiveError, ours_behind
from efficient_rollout.files import require_in_python
from efficient_rollout.metrics.step_file import require_free
from efficient_rollout.nodes import require_running_cluster
from efficient_rollout.patching import refuse_drifted
from efficient_rollout.training_job import check_policy, check_table, check_versions, measure_profile, refuse
from efficient_rollout.verl_plugin import HOW_TO_LOAD, PLUGIN_MODULE, ROLLOUT_NAME
from efficient_rollout.verl_plugin.settings import SETTINGS_PATH, job_settings, needs_stock_replay_buffer, run_directory

logger = logging.getLogger(__name__)

_SAMPLER = "trainer.v1.sampler.custom_sampler"
# By their names, so that a job's first process need not import the trainers that they stand in.
_PACKAGE = "efficient_rollout.verl_plugin"
# veRL's and vLLM's words in a process where the plugin did not load.
_WITHOUT_PLUGIN = (
    f"Unknown rollout mode: {ROLLOUT_NAME}",
    f"Rollout {ROLLOUT_NAME} with mode",
    "vllm version None not supported",
)
_BUFFERS, _ORDERED_BUFFER = f"pkg://{_PACKAGE}.replay_buffer", "OrderedReplayBuffer"


def check_environment() -> None:
    """Check versions, vLLM's device, and the plugin in this process.

    Raises:
        EfficientRolloutError: As `training_job.check_versions`.
        PluginInactiveError: `import verl` did not load the plugin.
        PatchDriftError: A patch does not know this version of veRL.
    """
    check_versions("verl")
    import verl  # noqa: F401 - the import loads the plugins

    if PLUGIN_MODULE not in sys.modules:
        try:
            importlib.import_module(PLUGIN_MODULE)
        except Exception as error:
            raise PluginInactiveError(f"the veRL plugin of efficient_rollout cannot load: {error}") from error
        raise PluginInactiveError(f"`import verl` did not load the plugin of efficient_rollout: {HOW_TO_LOAD}")
    plugin = sys.modules[PLUGIN_MODULE]
    allowed = plugin.vllm_plugins_allowed()
    if allowed is not None and "efficient_rollout" not in allowed:
        raise PluginInactiveError(
            f"VLLM_PLUGINS is set to {','.join(allowed)!r}, so vLLM will not load the plugin of efficient_rollout in "
            "its processes: unset it, or add 'efficient_rollout' to it"
        )
    refuse_drifted(plugin.PATCHES)


def check_job(config: DictConfig) -> Settings:
    """Check the job's own settings and files; return the settings of this package.

    Raises:
        ConfigError: A setting is unknown, out of range, or two of them do not fit together.
        InputFileError: A data or reward file is missing or unreadable.
        ClusterError: The Ray cluster that the job would join does not answer.
        EfficientRolloutError: As `training_job.check_policy`.
    """
    rollout = config.actor_rollout_ref.rollout
    settings = job_settings(config)
    if rollout.name != ROLLOUT_NAME:
        raise ConfigError(
            f"actor_rollout_ref.rollout.name is {rollout.name!r}: `efficient-rollout train` runs {ROLLOUT_NAME!r}; "
            f"set {SETTINGS_PATH}.enabled=false for plain vLLM"
        )
    if settings.enabled:
        _check_fits_drafting(config)
    model, options = config.actor_rollout_ref.model.path, _engine_options(config)
    check_policy(model, settings, **_engine_facts(config), options=options, device=config.trainer.device)
    bind_workers(rollout.tensor_model_parallel_size * rollout.data_parallel_size)
    _check_replay_buffer(config)
    for name in ("train_files", "val_files"):
        files = config.data[name]
        for file in map(str, files if isinstance(files, list | ListConfig) else [files]):
            if "://" not in file:
                _check_data(f"data.{name}", Path(file).expanduser(), config.data.prompt_key)
    _check_reward(config.reward.custom_reward_function)
    require_running_cluster(config.ray_kwargs.get("ray_init", {}).get("address"))
    return settings


def _check_data(option: str, path: Path, key: str) -> None:
    # Of other files than parquet, veRL's reader takes more forms than a look at the first line could tell.
    if path.suffix == ".parquet" or not path.is_file():
        check_table(option, path, key, "data.prompt_key")


def explain(error: BaseException) -> EfficientRolloutError | None:
    """Return our own error behind one that Ray carried, or what veRL's words for a missing plugin mean; else None."""
    if (ours := ours_behind(error)) is not None:
        return ours
    if any(words in str(error) for words in _WITHOUT_PLUGIN):
        return PluginInactiveError(
            "the plugin of efficient_rollout did not load in a process of the job: it must be installed on every node. "
            f"{HOW_TO_LOAD}"
        )
    return None


def _engine_facts(config: DictConfig) -> dict[str, Any]:
    rollout = config.actor_rollout_ref.rollout
    return {"dtype": rollout.dtype, "tensor_parallel_size": rollout.tensor_model_parallel_size}


def _engine_options(config: DictConfig) -> Mapping[str, Any]:
    """Return what veRL hands vLLM of the user's, as far as it decides whether an engine can draft.

    Not `load_format`: the trainer reads the weights that an engine can do without.
    """
    kwargs = config.actor_rollout_ref.rollout.get("engine_kwargs") or {}
    given: Any = OmegaConf.to_container(OmegaConf.create(kwargs.get("vllm") or {}), resolve=True)
    given.pop("load_format", None)
    return {"trust_remote_code": config.actor_rollout_ref.model.get("trust_remote_code"), **given}


def check_stock_job(config: DictConfig) -> None:
    """Check the same for a job of veRL's own entry point, before it starts Ray; nothing where Ray runs already.

    Raises:
        EfficientRolloutError: As `check_environment` and `check_job`; or another job writes into the run's directory.
    """
    import ray

    if ray.is_initialized():
        return
    check_versions("verl")
    require_free(run_directory(config))
    name_agent_loops(config, check_job(config))


def prepare_profile(config: DictConfig) -> None:
    """Measure the latency profile that the servers will look for; see `training_job.measure_profile`."""
    measure_profile(
        config.actor_rollout_ref.model.path,
        job_settings(config),
        **_engine_facts(config),
        enforce_eager=config.actor_rollout_ref.rollout.enforce_eager,
    )


def name_agent_loops(config: DictConfig, settings: Settings) -> None:
    """Name `seeded_loops.py` where requests are to get something of the settings', and the replay buffer with it.

    Raises:
        ConfigError: The job has one of its own already.
    """
    is_seeded = settings.rollout_seed is not None
    if not is_seeded and settings.controller.validation_max_draft_tokens is None:
        return
    setting = f"{SETTINGS_PATH}.{'rollout_seed' if is_seeded else 'controller.validation_max_draft_tokens'}"
    manager = f"{_PACKAGE}.seeded_loops.{'SeededManagerTQ' if config.trainer.use_v1 else 'SeededManager'}"
    agent = config.actor_rollout_ref.rollout.agent
    if agent.get("agent_loop_manager_class") not in (None, manager):
        raise ConfigError(
            f"{setting} is set, and so is actor_rollout_ref.rollout.agent.agent_loop_manager_class "
            f"({agent.agent_loop_manager_class}), which would have to tell requests of it: leave one of them out, or "
            f"derive yours from {manager}"
        )
    with open_dict(agent):
        agent.agent_loop_manager_class = manager
    if is_seeded and config.trainer.use_v1:
        _name_replay_buffer(config, setting)


def _name_replay_buffer(config: DictConfig, setting: str) -> None:
    if needs_stock_replay_buffer(config):
        logger.warning(
            "%s: requests are seeded, but which responses a step is trained on, and in which order, depends on time: "
            "algorithm.filter_groups and asynchronous trainers take them as they come",
            setting,
        )
        return
    sampler = config.trainer.v1.sampler.custom_sampler
    if sampler.path not in (None, _BUFFERS):
        raise ConfigError(
            f"{setting} is set, and so is {_SAMPLER} ({sampler.path}), which would have to put a batch in order: leave "
            f"one of them out, or derive yours from {_PACKAGE}.replay_buffer.{_ORDERED_BUFFER}"
        )
    sampler.path, sampler.name = _BUFFERS, _ORDERED_BUFFER


def _check_fits_drafting(config: DictConfig) -> None:
    model, rollout = config.actor_rollout_ref.model, config.actor_rollout_ref.rollout
    faults = {
        "actor_rollout_ref.model.lora_rank": model.lora_rank > 0,
        "actor_rollout_ref.model.mtp.enable_rollout": model.mtp.enable and model.mtp.enable_rollout,
        "actor_rollout_ref.rollout.quantization": rollout.quantization is not None,
        "actor_rollout_ref.rollout.pipeline_model_parallel_size": rollout.pipeline_model_parallel_size > 1,
    }
    refuse(faults, f"self-drafting does not work together with {{}}: unset it, or set {SETTINGS_PATH}.enabled=false")


def _check_replay_buffer(config: DictConfig) -> None:
    path = config.trainer.v1.sampler.custom_sampler.path
    if config.trainer.use_v1 and "efficient_rollout" in (path or "") and needs_stock_replay_buffer(config):
        raise ConfigError(
            "algorithm.filter_groups and the asynchronous trainers need veRL's own replay buffer: add "
            f"{_SAMPLER}.path=null {_SAMPLER}.name=null"
        )


def _check_reward(function: DictConfig) -> None:
    if function.path is None or str(function.path).startswith("pkg://"):
        return
    option = "reward.custom_reward_function"
    # As veRL reads it: without its own prefix, and no ~ is anybody's home.
    require_in_python(Path(str(function.path).removeprefix("file://")), function.name, option=option)


def validate(config: DictConfig) -> None:
    """Run veRL's own checks, as `verl.trainer.main_ppo` runs them.

    Raises:
        ConfigError: What veRL found.
    """
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config
    from verl.utils.device import auto_set_device

    auto_set_device(config)
    # This package's own checks behind it have run.
    stock = inspect.unwrap(validate_config)
    try:
        stock(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    except (AssertionError, ValueError, NotImplementedError, InstantiationException) as error:
        # Hydra wraps what a configuration class of veRL's raised.
        fault = error.__cause__ if isinstance(error, InstantiationException) else error
        raise ConfigError(f"veRL refuses the configuration: {fault}") from error
