"""Every name of vLLM, veRL and OpenRLHF that this package uses is on a list, and exists."""

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from checked_names import missing
from names_of_openrlhf import OF_OPENRLHF
from names_of_verl import OF_VERL
from names_of_vllm import MOVED, OF_ENGINES, OF_MEASURING, OF_SERVERS

ALL_OF_VLLM = {*OF_ENGINES, *OF_MEASURING, *OF_SERVERS}


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
        ("measuring/*.py", "vllm", ALL_OF_VLLM),
        ("verl_plugin/*.py", "verl", OF_VERL),
        ("openrlhf_plugin/*.py", "openrlhf", OF_OPENRLHF),
    ],
)
def test_every_import_is_listed(repository, folder, package, listed):
    sources = list((repository / "efficient_rollout").glob(folder))
    assert len(sources) > 3
    assert unlisted(sources, package, listed) == []


def test_the_check_sees_an_unlisted_import(tmp_path):
    source = tmp_path / "x.py"
    source.write_text("def f():\n    from vllm.a import b, c\n    import vllm.d\n    from vllm_other import e\n")
    assert unlisted([source], "vllm", ["vllm.a:b.attribute"]) == ["vllm.a:c", "vllm.d:*"]


@pytest.mark.parametrize(("package", "listed"), [("vllm", ALL_OF_VLLM), ("verl", OF_VERL)], ids=["vllm", "verl"])
def test_everything_listed_exists(package, listed):
    pytest.importorskip(package)
    assert missing(listed) == []


@pytest.mark.parametrize(("rows", "gone"), [(MOVED, []), ((("vllm:LLM", "vllm:Other"), ("vllm:A", "vllm:B")), [1])])
def test_of_names_that_moved_one_is_there(rows, gone):
    pytest.importorskip("vllm")
    assert [number for number, row in enumerate(rows) if len(missing(row)) == len(row)] == gone


@pytest.mark.parametrize("listed", [OF_ENGINES, OF_MEASURING, OF_VERL, OF_OPENRLHF])
def test_no_name_is_listed_twice(listed):
    assert len(set(listed)) == len(listed)
