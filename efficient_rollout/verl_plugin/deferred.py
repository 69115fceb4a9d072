"""An actor's class that imports what it is made of in the actor's own process alone."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any


def deferred(actual: type) -> type:
    """Return a class with the public methods of another one, which it imports and makes when it is made itself.

    Ray loads an actor's class wherever a handle of the actor arrives. veRL hands its servers' to the load balancer and
    the agent loops, and each would import vLLM's server for the sake of the methods' names.

    Args:
        actual: A class that can be imported, without asynchronous generators among its methods.

    Returns:
        The class to give to `ray.remote`; it is shipped whole, since no module has it by name.
    """
    module, qualname = actual.__module__, actual.__qualname__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        self.actual = getattr(importlib.import_module(module), qualname)(*args, **kwargs)

    methods = {
        name: _forwarded(name, is_async=inspect.iscoroutinefunction(function))
        for name, function in inspect.getmembers(actual, inspect.isfunction)
        if not name.startswith("_")
    }
    return type(actual.__name__, (), {"__init__": __init__, "__module__": __name__, **methods})


def _forwarded(name: str, *, is_async: bool) -> Callable[..., Any]:
    async def call_and_wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await getattr(self.actual, name)(*args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.actual, name)(*args, **kwargs)

    method = call_and_wait if is_async else call
    method.__name__ = name
    return method
