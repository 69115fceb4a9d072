import importlib.metadata

import pytest

pytest.importorskip("verl")

from efficient_rollout.errors import ConfigError, PluginInactiveError, UnsupportedVersionError
from efficient_rollout.verl_plugin import compat
from efficient_rollout.verl_plugin.checks import explain
from efficient_rollout.verl_plugin.replica import require_active


def test_the_installed_verl_is_supported():
    compat.check_versions()


@pytest.mark.parametrize("version", ["0.8.0", "0.10.0", "1.0"])
def test_another_verl_is_refused_with_what_to_install(monkeypatch, version):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "verl" else real(name))
    with pytest.raises(UnsupportedVersionError, match=rf"verl {version} is not supported.*pip install 'verl") as raised:
        compat.check_versions()
    assert "\n" not in str(raised.value)


def test_a_missing_verl_is_named(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UnsupportedVersionError, match="verl is not installed: pip install"):
        compat.check_versions()


def test_inactive_processes_are_all_named():
    statuses = {"server": {"active": True}, "engine worker 0": {"active": False}, "trainer worker 1": {}}
    with pytest.raises(PluginInactiveError, match=r"2 of 3 processes .*engine worker 0.*trainer worker 1"):
        require_active(statuses)
    require_active({"server": {"active": True, "efficient_rollout": "1"}})


def test_processes_of_different_versions_are_all_named():
    statuses = {name: {"active": True, "efficient_rollout": version} for name, version in (("a", "1"), ("b", "2"))}
    with pytest.raises(PluginInactiveError, match=r"different versions .*\(a: 1, b: 2\): install the same"):
        require_active(statuses)
    require_active({name: status for name, status in statuses.items() if name == "a"})


def test_an_error_of_ours_is_found_behind_what_ray_carried():
    ours = ConfigError("the fault")
    carried = RuntimeError("remote traceback")
    carried.cause = ours
    assert explain(carried) is ours
    assert explain(RuntimeError("something else")) is None


@pytest.mark.parametrize(
    "words",
    [
        "ValueError: Unknown rollout mode: efficient_vllm. Available: ['vllm']",
        "AssertionError: Rollout efficient_vllm with mode async not found",
    ],
)
def test_verl_without_the_plugin_is_called_what_it_is(words):
    assert isinstance(explain(RuntimeError(words)), PluginInactiveError)
