"""One configuration for veRL: its own `ppo_trainer`, our groups on top, then the user's overrides.

veRL is not imported for it, which takes ten seconds: a misspelt option is answered before that.
"""

import contextlib
import difflib
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from efficient_rollout.errors import ConfigError
from efficient_rollout.secrets import text_without_secrets
from efficient_rollout.upstream import check_installed
from efficient_rollout.verl_plugin.recipes import register_recipes, shipped
from efficient_rollout.verl_plugin.settings import needs_stock_replay_buffer

logger = logging.getLogger(__name__)

CONFIG_NAME = "efficient_rollout"
# The size that embeds nothing.
OWN_SIZE = "own"
MODEL_PATH = "actor_rollout_ref.model.path"
_VERL = "veRL"
_SAMPLER = "trainer.v1.sampler.custom_sampler"
_RAY_INIT, _RAY_ADDRESS = "ray_kwargs.ray_init", "RAY_ADDRESS"
_SEARCH_PATH = "hydra.searchpath"
# Ray takes these for a cluster that it starts, and refuses them for one that runs.
_OF_A_NEW_CLUSTER = ("address", "num_cpus", "num_gpus", "_system_config", "include_dashboard")


class _JobConfigLoader(ConfigLoaderImpl):
    """Is hydra's loader, with what a job's options bring along.

    A model of the user's own is trained with veRL's defaults, or with an embedded policy's where its size is named.
    """

    def load_configuration(
        self, config_name: str | None, overrides: list[str], *args: Any, **kwargs: Any
    ) -> DictConfig:
        """Do as stock does, and complete the configuration."""
        config = super().load_configuration(config_name, _brought_along(overrides), *args, **kwargs)
        if config_name is None:
            return config
        chosen = _chosen(overrides)
        if f"{_RAY_INIT}.address" not in chosen:
            _join_running_cluster(config)
        if f"{_SAMPLER}.path" not in chosen and needs_stock_replay_buffer(config):
            OmegaConf.update(config, _SAMPLER, {"path": None, "name": None})
        return config

    def compute_defaults_list(self, config_name: str | None, overrides: list[str], *args: Any, **kwargs: Any) -> Any:
        """Do as stock does, with the same overrides."""
        return super().compute_defaults_list(config_name, _brought_along(overrides), *args, **kwargs)


def _brought_along(overrides: Sequence[str]) -> list[str]:
    chosen, brought = _chosen(overrides), []
    if MODEL_PATH in chosen and "size" not in chosen:
        brought.append(f"size={OWN_SIZE}")
    if _SEARCH_PATH not in chosen:
        # veRL's folder is on the path already; as in our file, hydra would import veRL to find it.
        brought.append(f"{_SEARCH_PATH}=[]")
    return [*brought, *overrides]


def config_dir() -> Path:
    """Return the folder of our hydra groups."""
    return shipped("configs", proof=f"{CONFIG_NAME}.yaml")


def job_hydra(extra: str | None = None) -> Hydra:
    """Return hydra's own object, with every recipe and rule, and the groups of a folder of the user's own.

    Raises:
        UnsupportedVersionError: There is no veRL, whose configuration is the ground, or another than is supported.
        ConfigError: There is no such folder.
    """
    check_installed("verl")
    register_recipes(config_dir())
    version.setbase(None)
    search_path = create_config_search_path(str(config_dir()))
    folders = [(_VERL, _verl_config_dir())]
    if extra is not None:
        if not Path(extra).is_dir():
            raise ConfigError(f"--config-dir: {extra} is not a directory")
        folders.insert(0, ("command-line", Path(extra).resolve()))
    for provider, folder in folders:
        search_path.prepend(provider=provider, path=f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    return Hydra(task_name="train", config_loader=_JobConfigLoader(config_search_path=search_path))


def _verl_config_dir() -> Path:
    package = find_spec("verl")
    assert package is not None, "its version was asked for"
    return Path(str(package.origin)).parent / "trainer" / "config"


def groups(hydra: Hydra) -> dict[str, list[str]]:
    """Return the options of every group of this package and of the user's folder, by the group's name.

    hydra's own way to ask copies all sources for each group, which takes seconds.
    """
    options: defaultdict[str, set[str]] = defaultdict(set)
    for source in hydra.config_loader.repository.get_sources():
        if source.provider != _VERL:
            for name in source.list("", ObjectType.GROUP):
                options[name].update(source.list(name, ObjectType.CONFIG))
    return {name: sorted(found) for name, found in sorted(options.items()) if found and name != "hydra"}


def compose_config(overrides: Sequence[str], hydra: Hydra | None = None) -> DictConfig:
    """Compose the job's configuration from the user's overrides, with what they bring along.

    Raises:
        ConfigError: An override names nothing, or cannot be resolved.
    """
    hydra = hydra or job_hydra()
    with told_plainly(hydra):
        config = hydra.compose_config(CONFIG_NAME, list(overrides), RunMode.RUN)
        with open_dict(config):
            del config["hydra"]
        OmegaConf.to_container(config, resolve=True)
    return config


def _chosen(overrides: Sequence[str]) -> set[str]:
    return {override.partition("=")[0].lstrip("+") for override in overrides}


def _join_running_cluster(config: DictConfig) -> None:
    """Join the cluster that Ray's own variable names, as in `ray job submit`, if there is one; start none."""
    address = os.environ.get(_RAY_ADDRESS)
    ray_init = config.ray_kwargs.ray_init
    if address in (None, "", "local") or ray_init.get("address") != "local":
        return
    told = text_without_secrets(address)
    logger.warning("joining the Ray cluster at %s (%s), whose own slots count", told, _RAY_ADDRESS)
    with open_dict(ray_init):
        for name in _OF_A_NEW_CLUSTER:
            ray_init.pop(name, None)


@contextlib.contextmanager
def told_plainly(hydra: Hydra) -> Iterator[None]:
    """Stand around hydra: its faults become one error, with the nearest of the names that there are.

    Raises:
        ConfigError: What hydra or OmegaConf raised.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"cannot compose the configuration: {_told(error, hydra)}") from error


def _told(error: Exception, hydra: Hydra) -> str:
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        near = _nearest(f"{group}=", name, error.options)
        return f"there is no {group}={name}{near} {group}= takes {', '.join(error.options)}"
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
        parent, dot, key = cause.full_key.rpartition(".")
        known = [str(name) for name in cause.parent_node or ()] + ([] if parent else list(groups(hydra)))
        near = _nearest(parent + dot, key, known)
        return f"there is no {cause.full_key}{near} A key that veRL does not list is added with a + in front"
    # What follows names hydra's folders, or the types of its nodes.
    text = str(error) or str(cause)
    lines = [line.strip() for line in text.split("\nConfig search path")[0].splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("full_key:", "object_type=")))


def _nearest(prefix: str, name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {prefix}{found[0]}?" if found else "."
