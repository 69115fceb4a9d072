"""How stock calls functions that it is given: their arguments are nowhere declared, and are read from its source."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from checked_names import found_at


@dataclass(frozen=True, slots=True)
class CallbackCall:
    """One call of a function that was given as an argument.

    Attributes:
        num_positional: Arguments by position.
        keywords: Names of those by keyword, of which some may be passed in some cases alone.
    """

    num_positional: int
    keywords: tuple[str, ...]


def callback_calls(target: str, parameter: str) -> list[CallbackCall]:
    """Every call of a parameter in a function's source.

    Args:
        target: `module:Class.method` of stock's.
        parameter: Its parameter that is called.

    Raises:
        ImportError: There is no such function.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(found_at(target))))
    made = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        CallbackCall(len(call.args), tuple(_keywords(call, tree)))
        for call in made
        if isinstance(call.func, ast.Name) and call.func.id == parameter
    ]


def callback_breaches(target: str, parameter: str, ours: str) -> Iterator[str]:
    """What of stock's calls our function does not take, a phrase each.

    Args:
        target: As in `callback_calls`.
        parameter: The same.
        ours: `module:Class.method` that is given for it.
    """
    try:
        calls, signature = callback_calls(target, parameter), inspect.signature(found_at(ours))
    except ImportError as error:
        yield f"is missing: {error}"
        return
    if not calls:
        yield f"never calls {parameter} by its name"
    for call in calls:
        try:
            # One for `self`; what is passed in some cases alone must be optional, and bind either way.
            signature.bind(*[None] * (call.num_positional + 1), **dict.fromkeys(call.keywords))
            signature.bind(*[None] * (call.num_positional + 1))
        except TypeError as error:
            given = ", ".join([f"{call.num_positional} arguments", *call.keywords])
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
