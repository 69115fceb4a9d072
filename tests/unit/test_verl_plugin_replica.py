"""A replica refuses to train with a process that lacks the plugin, or has another version of it."""

import pytest

pytest.importorskip("verl")

from efficient_rollout.errors import PluginInactiveError
from efficient_rollout.verl_plugin.replica import require_active


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
