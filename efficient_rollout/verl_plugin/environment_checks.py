"""What must be installed, and loaded in this process, before a job is looked at."""

import importlib
import sys

from efficient_rollout.engine.compat import check_build, check_vllm_version
from efficient_rollout.errors import PluginInactiveError
from efficient_rollout.patching import refuse_drifted
from efficient_rollout.verl_plugin import PLUGIN_MODULE, compat


def check_environment() -> None:
    """Versions, vLLM's device, and the plugin in this process.

    Raises:
        UnsupportedVersionError: veRL or vLLM is missing or not supported.
        UnsupportedDeviceError: vLLM does not run on a CPU.
        PluginInactiveError: `import verl` did not load the plugin.
        PatchDriftError: A patch does not know this version of veRL.
    """
    compat.check_versions()
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
    allowed = sys.modules[PLUGIN_MODULE].vllm_plugins_allowed()
    if allowed is not None and "efficient_rollout" not in allowed:
        raise PluginInactiveError(
            f"VLLM_PLUGINS is set to {','.join(allowed)!r}, so vLLM will not load the plugin of efficient_rollout in "
            "its processes: unset it, or add 'efficient_rollout' to it"
        )
    # It imports veRL, which has to load the plugin by itself first.
    from efficient_rollout.verl_plugin.ledger import PATCHES

    refuse_drifted(PATCHES)
