"""What hydra finds in no folder: the recipes, one step of any of them on a CPU, and rules without a yaml file."""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import efficient_rollout
from efficient_rollout.errors import ConfigError
from efficient_rollout.rule_table import RULES
from efficient_rollout.verl_plugin.settings import SETTINGS_PATH

_CONFIG_FILE = "recipe.yaml"


def shipped(folder: str, *, proof: str) -> Path:
    """Return a folder that is beside the package's modules in a wheel, and beside the package in a checkout.

    Raises:
        ConfigError: It is in neither place, or without the file that proves it.
    """
    package = Path(efficient_rollout.__file__).parent
    for candidate in (package / folder, package.parent / folder):
        if (candidate / proof).is_file():
            return candidate
    raise ConfigError(f"the folder {folder} is missing beside {package}: reinstall efficient-rollout")


def recipe_folders() -> dict[str, Path]:
    """Return every recipe's folder, by the name that `recipe=` takes."""
    folder = shipped("recipes", proof=f"grpo_quickstart/{_CONFIG_FILE}")
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{_CONFIG_FILE}"))}


def register_recipes(configs: Path) -> None:
    """Make the recipes, the small hardware and policy to try them on, and every rule known to hydra.

    A recipe's file stands beside its README and its code, which `${recipe.directory}` in it names, and not where hydra
    looks for options of a group: in the folder `configs`.
    """
    store = ConfigStore.instance().store
    for name, directory in recipe_folders().items():
        own = {"recipe": {"name": name, "directory": str(directory)}}
        recipe = OmegaConf.merge(OmegaConf.load(directory / _CONFIG_FILE), own)
        store(name=name, node=recipe, group="recipe", package="_global_")
    for rule in RULES.keys() - {path.stem for path in (configs / "controller").glob("*.yaml")}:
        store(name=rule, node={"rule": rule}, group="controller", package=f"{SETTINGS_PATH}.controller")
    small = ("device/cpu.yaml", "size/nano.yaml", "smoke_nano.yaml")
    # An option of its own, since a recipe's values stand above those of the device and the size.
    smoke = OmegaConf.merge(*[OmegaConf.load(configs / name) for name in small])
    store(name="nano", node=smoke, group="smoke", package="_global_")
