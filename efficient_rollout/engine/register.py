"""Entry point `vllm.general_plugins`: vLLM calls it in every process it starts."""

from efficient_rollout.engine import ledger
from efficient_rollout.patching import apply_patches

_registered = False


def register() -> None:
    """Mark the plugin as loaded in this process; safe to call twice.

    An engine that does not ask for this package must not feel it: what is patched here does nothing for it, and drift
    is left for the worker class to report, which applies the whole ledger in the engines that do ask.
    """
    global _registered
    _registered = True
    apply_patches(ledger.REQUEST_PATCHES, leave_drifted=True)


def is_registered() -> bool:
    """Tell whether vLLM has called the entry point in this process."""
    return _registered
