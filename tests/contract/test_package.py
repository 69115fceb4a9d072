"""The wheel that users install: what is in it, and that its entry points resolve."""

import importlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from wheel_support import build_wheel


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Iterator[zipfile.ZipFile]:
    """The package, built from the checkout without isolation."""
    with zipfile.ZipFile(build_wheel(repository, tmp_path_factory.mktemp("wheel"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    """The wheel's files in a folder that can stand in front of the import path."""
    folder = tmp_path_factory.mktemp("unpacked")
    wheel.extractall(folder)
    return folder


def test_every_config_and_module_ships(wheel, repository):
    expected = {
        f"efficient_rollout/{path.relative_to(repository)}"
        for folder in ("configs", "recipes")
        for path in (repository / folder).rglob("*.*")
        if "__pycache__" not in path.parts
    }
    for suffix in ("py", "html", "json", "jinja", "safetensors"):
        found = (repository / "efficient_rollout").rglob(f"*.{suffix}")
        expected |= {str(path.relative_to(repository)) for path in found}
    assert len(expected) > 40
    assert expected <= set(wheel.namelist())


def test_nothing_else_ships(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"efficient_rollout", next(top for top in tops if top.endswith(".dist-info"))}
    ours = [Path(name) for name in wheel.namelist() if name.startswith("efficient_rollout/")]
    assert {path.suffix for path in ours} <= {
        ".py", ".yaml", ".md", ".c", ".h", ".html", ".json", ".jinja", ".safetensors",
    }  # fmt: skip
    assert {path.parts[1] for path in ours if path.suffix == ".md"} == {"recipes"}
    assert {path.parent.name for path in ours if path.suffix == ".json"} == {"gpu_check", "nano", "small"}
    assert sorted(path.name for path in ours if path.suffix in {".c", ".h"}) == [
        "activations.h",
        "blocks.h",
        "common.h",
        "float32.c",
        "int4.c",
        "int8.c",
        "sampling.c",
    ]


def test_licence_ships(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("licenses/LICENSE"))
    assert b"Apache License" in wheel.read(name)


@pytest.fixture(scope="module")
def shipped(wheel) -> metadata.Distribution:
    """What the wheel says of itself."""
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return metadata.PathDistribution(zipfile.Path(wheel, name.removesuffix("METADATA")))


def test_entry_points_are_these_and_resolve(shipped):
    assert {point.group for point in shipped.entry_points} == {
        "console_scripts", "vllm.general_plugins", "verl.plugins",
    }  # fmt: skip
    for point in shipped.entry_points:
        loaded = point.load()
        assert callable(loaded) or loaded is importlib.import_module(point.value)


def test_installed_metadata_is_the_checkout_s(shipped):
    # Version ranges and entry points are read from the installed metadata, which an editable install does not follow.
    installed = metadata.distribution("efficient-rollout")
    advice = "pyproject.toml changed since the install: bash scripts/install.sh"
    assert set(installed.entry_points) == set(shipped.entry_points), advice
    assert set(installed.requires) == set(shipped.requires), advice
    assert installed.metadata["Requires-Python"] == shipped.metadata["Requires-Python"], advice


def test_configs_are_found_beside_the_unpacked_modules(unpacked):
    script = (
        "import efficient_rollout, sys\n"
        "from efficient_rollout.verl_plugin.compose import compose_config, config_dir\n"
        "sys.stdout.write(f'{efficient_rollout.__file__}\\n{config_dir()}\\n')\n"
        "sys.stdout.write(compose_config(['recipe=ppo', 'size=small']).actor_rollout_ref.rollout.name)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=unpacked, env=environment)
    assert result.returncode == 0, result.stderr
    module, folder, rollout_name = result.stdout.splitlines()[-3:]
    assert Path(module).is_relative_to(unpacked)
    assert Path(folder) == unpacked / "efficient_rollout" / "configs"
    assert rollout_name == "efficient_vllm"
