"""Whether upstream has a name, and whether a function takes what it is given: asked of the code, not of an object."""

import dis
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from types import CodeType
from typing import Any


def names(listing: str) -> tuple[str, ...]:
    """Names of a listing: `module:name`, and behind it attributes, which become `module:name.attribute`."""
    found, owner = [], ""
    for word in re.sub(r"#.*", "", listing).split():
        owner = word if ":" in word else owner
        found.append(word if word == owner else f"{owner}.{word}")
    return tuple(found)


def missing(names: Iterable[str]) -> list[str]:
    """Those that are not there.

    Args:
        names: `module:name`, `module:Class.name` with attributes that instances get among the names, or
            `module:function.name` with attributes that the function sets on what it is given.
    """
    return [name for name in names if not _exists(name)]


def _exists(name: str) -> bool:
    module_name, _, path = name.partition(":")
    *parents, last = path.split(".")
    try:
        owner: Any = importlib.import_module(module_name)
        for parent in parents:
            owner = getattr(owner, parent)
        return hasattr(owner, last) or _gives_instances(owner, last)
    except (ImportError, AttributeError):
        return False


def _gives_instances(owner: Any, attribute: str) -> bool:
    """Whether a class declares it, or one of its methods, or the function that `owner` is, assigns it."""
    if not isinstance(owner, type):
        return _assigns(owner, attribute)
    return any(
        attribute in vars(base).get("__annotations__", ())
        or any(_assigns(member, attribute) for member in vars(base).values())
        for base in owner.__mro__
    )


def _assigns(function: Any, attribute: str) -> bool:
    function = getattr(function, "fget", None) or getattr(function, "__func__", function)
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    return isinstance(code, CodeType) and any(
        attribute in part.co_names
        and any(step.opname == "STORE_ATTR" and step.argval == attribute for step in dis.get_instructions(part))
        for part in (code, *(constant for constant in code.co_consts if isinstance(constant, CodeType)))
    )


def found_at(target: str) -> Any:
    """What stands at `module:attribute.path`; ImportError where there is nothing, or its module cannot be imported."""
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        if not hasattr(found, name):
            raise ImportError(f"{module} has no {path}")
        found = getattr(found, name)
    return found


def parameters(target: str) -> dict[str, inspect.Parameter]:
    """Parameters of a function, a method or a class, by name, without `self`.

    Args:
        target: `module:function` or `module:Class.method`.

    Raises:
        ImportError: There is none; or its module cannot be imported, and the message says why.
    """
    return {name: value for name, value in inspect.signature(found_at(target)).parameters.items() if name != "self"}


def call_breaches(target: str, passed: str) -> Iterator[str]:
    """What would go wrong in a call.

    Args:
        target: As for `parameters`.
        passed: Names, the first by position, those behind a `*` by name.
    """
    try:
        takes = parameters(target)
    except ImportError as error:
        yield f"is missing: {error}"
        return
    by_position, by_name = ((part or "").split() for part in (*passed.split("*"), "")[:2])
    first = list(takes)[: len(by_position)]
    if by_position != first:
        yield f"takes {', '.join(first)} first, not {', '.join(by_position)}"
    unknown = [name for name in by_name if name not in takes]
    if unknown:
        yield f"takes no {', '.join(unknown)}"
    required = [name for name in takes if _is_required(takes[name]) and name not in (*by_position, *by_name)]
    if required:
        yield f"needs {', '.join(required)} too"


def override_breaches(target: str, ours: str) -> Iterator[str]:
    """What would go wrong where stock calls `ours` in the place of `target`, both as for `parameters`."""
    try:
        theirs, own = parameters(target), parameters(ours)
    except ImportError as error:
        yield f"is missing, or ours: {error}"
        return
    # Stock passes by position what has no default, and the rest by name.
    required = [name for name in theirs if _is_required(theirs[name])]
    takes_any = any(value.kind == value.VAR_KEYWORD for value in own.values())
    unknown = [name for name, ours in zip_longest(required, list(own)[: len(required)]) if name != ours]
    unknown += [name for name in theirs if name not in (*required, *own) and not takes_any]
    if unknown:
        yield f"is called with {', '.join(unknown)}, which {ours.partition(':')[2]} does not take there"
    needed = [name for name in own if _is_required(own[name]) and name not in theirs]
    if needed:
        yield f"is called without {', '.join(needed)}, which {ours.partition(':')[2]} needs"


def _is_required(parameter: inspect.Parameter) -> bool:
    is_variable = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    return parameter.default is parameter.empty and not is_variable
