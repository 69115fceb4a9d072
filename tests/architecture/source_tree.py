"""The package's source files as parsed trees, for the tests of this folder."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "efficient_rollout"


@dataclass(frozen=True, slots=True)
class Source:
    """One module; `path` is relative to the repository, `room` as `room_of` says."""

    path: Path
    room: str
    text: str
    tree: ast.Module


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, absolute, and whether importing the file imports it too."""

    module: str
    is_lazy: bool
    line: int


def parse(path: Path, text: str) -> Source:
    """A source from its text; `path` is relative to the repository."""
    return Source(path, room_of(path.with_suffix("").parts[1:]), text, ast.parse(text))


def room_of(below: Sequence[str]) -> str:
    """The room of a module, from its names below the package: a folder there, or a module beside the folders.

    The engine's folders are rooms of their own, such as `engine.cpu`.
    """
    if not below:
        return "__init__"
    is_nested = below[0] == "engine" and len(below) > 1 and (PACKAGE / "engine" / below[1]).is_dir()
    return ".".join(below[:2]) if is_nested else below[0]


@cache
def package_sources() -> tuple[Source, ...]:
    """Every module of the package."""
    return tuple(
        parse(path.relative_to(REPOSITORY), path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))
    )


def imports(source: Source) -> Iterator[Import]:
    """Every import outside `if TYPE_CHECKING`, those inside functions marked lazy."""
    yield from _imports(source.tree.body, is_lazy=False)


def _imports(body: list[ast.stmt], *, is_lazy: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, is_lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            # `from package import name` may import the module `package.name`.
            yield from (Import(f"{node.module}.{alias.name}", is_lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(node.orelse, is_lazy=is_lazy)
        else:
            inner = is_lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for field in ("body", "orelse", "finalbody"):
                yield from _imports(getattr(node, field, []), is_lazy=inner)
            for handler in getattr(node, "handlers", []):
                yield from _imports(handler.body, is_lazy=inner)
