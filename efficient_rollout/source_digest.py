"""A digest of what Python code does: other comments, docstrings and layout make no other one."""

import ast
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_digest(package: Path, roots: Sequence[str], *, within: Sequence[str], without: Sequence[str]) -> str:
    """Return the SHA-256, in hex, of modules in some folders of a package, and of what they import of it, and so on.

    Args:
        package: Its folder, whose name is the package's.
        roots: Folders in it to begin with.
        within: Folders whose modules count where they are imported.
        without: Folders in those that do not.
    """
    modules = {}
    waiting = [path for root in roots for path in sorted((package / root).rglob("*.py"))]
    while waiting:
        path = waiting.pop()
        if path in modules:
            continue
        tree = modules[path] = ast.parse(path.read_text(encoding="utf-8"))
        for found in _imported(tree, package):
            place = f"{found.relative_to(package).as_posix()}"
            if place.startswith(tuple(f"{folder}/" for folder in within)) and not place.startswith(
                tuple(f"{folder}/" for folder in without)
            ):
                waiting.append(found)
    digest = hashlib.sha256()
    for path in sorted(modules):
        digest.update(f"{path.relative_to(package).as_posix()}\0{_meaning(modules[path])}\0".encode())
    return digest.hexdigest()


def _imported(tree: ast.AST, package: Path) -> Iterator[Path]:
    """Yield files of the package's modules that a module names in an import, wherever it stands."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            first, *parts = name.split(".")
            if first == package.name and parts:
                path = package.joinpath(*parts)
                yield from (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file())


def _meaning(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
