"""Whether this package's plugin is active in a process, for every process of a job to be asked."""

import sys
from typing import Any

from verl.plugin.platform import get_platform

from efficient_rollout import __version__
from efficient_rollout.patching import state, unfit
from efficient_rollout.provenance import package_versions
from efficient_rollout.verl_plugin import PLUGIN_MODULE
from efficient_rollout.verl_plugin.ledger import CPU_PATCHES, PATCHES


def plugin_status() -> dict[str, Any]:
    """Return versions, patches and device.

    It is active where `import verl` loaded the plugin, and every process's patches are in.

    Loads nothing of the plugin itself, so that it tells what was there already.
    """
    patches = {patch.name: state(patch) for patch in PATCHES}
    everywhere = {patch.name: patches[patch.name] for patch in CPU_PATCHES}
    return {
        "active": PLUGIN_MODULE in sys.modules and not unfit(everywhere),
        "efficient_rollout": __version__,
        "verl": package_versions(("verl",))["verl"],
        "platform": get_platform().device_name,
        "patches": patches,
    }
