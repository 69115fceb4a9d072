"""Entry point `vllm.general_plugins`: vLLM calls it in every process it starts."""

_registered = False


def register() -> None:
    """Mark the plugin as loaded in this process; safe to call twice.

    Nothing of vLLM is touched here: an engine that does not ask for this package must not feel it. The worker
    class applies the patch ledger in the engines that do.
    """
    global _registered
    _registered = True


def is_registered() -> bool:
    """Whether vLLM has called the entry point in this process."""
    return _registered
