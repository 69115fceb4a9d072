"""The policy's KV cache for the drafter's layers too, in vLLM's V2 model runner."""

from collections.abc import Callable, Mapping
from typing import Any

# Methods of the runner that collect what to allocate, and that allocate and bind it.
_COLLECTING = ("get_kv_cache_spec", "initialize_kv_cache")


def share_kv_cache(runner: Any, layers: Mapping[str, Any], twins: Mapping[str, Any]) -> None:
    """Have the runner give the drafter's layers the policy's KV cache; to be called once.

    They name the policy's layers while it collects, allocates or binds, and no longer: a layer that names another's
    cache writes no KV, and code compiled from it, which a GPU's worker does before there is a cache, never would.

    Args:
        runner: Before it has collected anything.
        layers: All attention layers of the engine, by name.
        twins: The policy's attention layer of each of the drafter's, by the name of the drafter's.
    """

    def sharing(collect: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            for name, twin in twins.items():
                layers[name].kv_sharing_target_layer_name = twin.layer_name
            try:
                return collect(*args, **kwargs)
            finally:
                for name in twins:
                    layers[name].kv_sharing_target_layer_name = None

        return call

    for name in _COLLECTING:
        setattr(runner, name, sharing(getattr(runner, name)))


def stop_sharing_kv_cache(runner: Any) -> None:
    """Undo `share_kv_cache`, which holds the layers."""
    for name in _COLLECTING:
        vars(runner).pop(name, None)
