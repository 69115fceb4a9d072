"""How stock calls functions that it is given: their arguments are nowhere declared, and are read from its source."""

import ast
import inspect
import textwrap
from collections.abc import Iterator

from checked_names import found_at


def callback_breaches(target: str, parameter: str, ours: str) -> Iterator[str]:
    """What of stock's calls of a function that it is given ours does not take, a phrase each.

    Args:
        target: `module:Class.method` of stock's.
        parameter: Its parameter that is called.
        ours: `module:Class.method` that is given for it.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(found_at(target))))
        signature = inspect.signature(found_at(ours))
    except ImportError as error:
        yield f"is missing: {error}"
        return
    made = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls = [call for call in made if isinstance(call.func, ast.Name) and call.func.id == parameter]
    if not calls:
        yield f"never calls {parameter} by its name"
    for call in calls:
        keywords = list(_keywords(call, tree))
        # One for `self`; what is passed in some cases alone must be optional, and bind either way.
        positional = [None] * (len(call.args) + 1)
        try:
            signature.bind(*positional, **dict.fromkeys(keywords))
            signature.bind(*positional)
        except TypeError as error:
            given = ", ".join([f"{len(call.args)} arguments", *keywords])
            yield f"calls {parameter} with {given}, which {ours.partition(':')[2]} does not take: {error}"


def _keywords(call: ast.Call, tree: ast.AST) -> Iterator[str]:
    for keyword in call.keywords:
        if keyword.arg is not None:
            yield keyword.arg
        elif isinstance(keyword.value, ast.Name):  # a dictionary that is filled before
            yield from _keys_of(keyword.value.id, tree)


def _keys_of(dictionary: str, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(key)), ctx=ast.Store()):
                if name == dictionary:
                    yield key
