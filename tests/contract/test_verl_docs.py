"""docs/verl.md says what the code does; `test_site.py` has the pages whose tables are generated."""

import pytest

pytest.importorskip("verl")

from omegaconf import OmegaConf

from efficient_rollout.verl_plugin.compose import config_dir
from efficient_rollout.verl_plugin.ledger import PATCHES


def test_every_patch_is_documented(repository):
    text = (repository / "docs" / "verl.md").read_text()
    for patch in PATCHES:
        assert f"`{patch.name}`" in text
        assert patch.target.replace(":", ".") in text


def test_every_cpu_option_is_documented(repository):
    text = (repository / "docs" / "verl.md").read_text()
    leaves = _leaves(OmegaConf.to_container(OmegaConf.load(config_dir() / "device" / "cpu.yaml")))
    # Counts of one node and one slot, and what stands under a key documented as a whole.
    obvious = {"nnodes", "n_gpus_per_node"}
    whole = ("ray_init", "custom_sampler")
    undocumented = [
        ".".join(path)
        for path in leaves
        if path[-1] not in obvious and not set(whole) & set(path) and path[-1] not in text
    ]
    assert undocumented == []


def _leaves(tree: dict, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [
        leaf
        for key, value in tree.items()
        for leaf in (_leaves(value, (*path, key)) if isinstance(value, dict) else [(*path, key)])
    ]
