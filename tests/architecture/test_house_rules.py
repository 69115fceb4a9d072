"""Budgets and habits of the house style that a reader can count on."""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator

import pytest
from source_tree import REPOSITORY, package_sources

MAX_FILE_LINES, HARD_MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 400, 50
# Files between the soft and the hard limit, each with its reason.
LONG_FILES: dict[str, str] = {}
# Modules that touch the process environment, each with its reason. Settings never travel that way.
ENVIRONMENT_USERS = {
    "efficient_rollout/cache.py": "the cache directory follows the XDG convention",
    "efficient_rollout/secrets.py": "knows which variables are secrets, to leave them out of messages",
    "efficient_rollout/engine/environment.py": "sets what vLLM takes from variables alone",
    "efficient_rollout/gpu_check/steps.py": "shows a step one of the GPUs that CUDA's own variable names",
    "efficient_rollout/verl_plugin/register.py": "sets veRL's own switch for its CPU engines",
    "efficient_rollout/verl_plugin/platform.py": "asks veRL's own switch which platform was chosen",
    "efficient_rollout/openrlhf_plugin/stand_ins.py": "tells DeepSpeed its accelerator",
    "efficient_rollout/nodes.py": "Ray's own variable names the cluster that a job would join",
    "efficient_rollout/verl_plugin/compose.py": "Ray's own variable names the cluster that a job was submitted to",
    "efficient_rollout/verl_plugin/preload_client.py": "a process that stands for another takes its variables along",
    "efficient_rollout/verl_plugin/preloading.py": "the same, and imports find the variables that Ray's processes find",
    "efficient_rollout/metrics/step_file.py": "wandb's own variables are the one way to name a run that others start",
    "efficient_rollout/verl_plugin/server.py": "hands veRL the name it looks a job's servers up by",
}
# Tests in `tests/unit` of what no module does alone, each with what that is. Every other one is named after its module.
ACROSS_MODULES = {
    "adding_a_rule": "the page on rules, carried out",
    "adding_a_scheme": "the page on adding a scheme, carried out",
    "bench": "what the benchmark's commands are asked, and what they make of rounds",
    "compatibility": "the table of versions, and what scripts/compat.py does for it",
    "cost_model_per_request": "a claim about the cost model, on measured latencies",
    "cost_model_regret": "a claim about the cost model, on measured latencies",
    "drafter_cuda_compiled": "the Triton kernels, compiled for GPUs that are not here",
    "engine_cpu_draft_chains": "how a chain is laid out, apart from the layers that read it",
    "drafter_native": "the C kernels behind their layers",
}
FORBIDDEN_IN_FILES = {
    "a path of one machine": re.compile(r"(?<![\w.}])/(work|opt|root|home/\w+)/\w"),
    "a package index": re.compile(r"(--(extra-)?index-url|find-links)[ =]+(https?|file)://|download\.pytorch\.org"),
}
SOURCES = pytest.mark.parametrize("source", package_sources(), ids=lambda source: str(source.path))


@SOURCES
def test_file_is_small(source):
    num_lines = source.text.count("\n")
    assert num_lines <= (HARD_MAX_FILE_LINES if str(source.path) in LONG_FILES else MAX_FILE_LINES)


@SOURCES
def test_functions_are_small(source):
    long = [
        f"{node.name}: {length} lines"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert long == []


@SOURCES
def test_public_names_have_docstrings(source):
    assert ast.get_docstring(source.tree), "the module has none"
    assert list(_undocumented(source.tree.body)) == []


def _undocumented(body: list[ast.stmt], owner: str = "", *, inherits: bool = False) -> Iterator[str]:
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        # A method of a subclass may fulfil its parent's contract, which is written there.
        if not ast.get_docstring(node) and not (inherits and not isinstance(node, ast.ClassDef)):
            yield owner + node.name
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).split("[")[0] for base in node.bases}
            yield from _undocumented(node.body, f"{owner}{node.name}.", inherits=bool(bases - {"Protocol"}))


@SOURCES
def test_environment_is_no_interface(source):
    uses = [
        node.lineno
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "putenv"})
        or (isinstance(node, ast.ImportFrom) and any(alias.name in {"environ", "getenv"} for alias in node.names))
    ]
    if str(source.path) in ENVIRONMENT_USERS:
        assert uses, "uses no environment any more: take it off the list"
    else:
        assert uses == [], "settings travel in the configuration; see ENVIRONMENT_USERS for the exceptions"


@SOURCES
def test_nothing_prints(source):
    calls = [
        node.lineno
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


@SOURCES
def test_text_is_ascii(source):
    assert source.text.isascii()


def test_unit_tests_are_named_after_what_they_test(repository):
    modules = {"_".join(source.path.with_suffix("").parts[1:]).strip("_") for source in package_sources()}
    stems = [path.stem.removeprefix("test_") for path in (repository / "tests" / "unit").glob("test_*.py")]
    names = {stem.removeprefix("triton_") for stem in stems}  # those that need Triton say so first
    assert sorted(names - modules - ACROSS_MODULES.keys()) == [], "name it after its module, or list it"
    assert sorted(ACROSS_MODULES.keys() - names) == [], "gone: take it off the list"
    assert sorted(ACROSS_MODULES.keys() & modules) == [], "is a module: take it off the list"


def test_tracked_files_name_no_machine_and_no_index(repository):
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=True)
    found = []
    for name in filter(None, listing.stdout.split("\0")):
        path = repository / name
        if name == "tests/architecture/test_house_rules.py" or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        found += [f"{name}: {what}" for what, pattern in FORBIDDEN_IN_FILES.items() if pattern.search(text)]
    assert found == []


def test_the_file_check_sees():
    assert FORBIDDEN_IN_FILES["a path of one machine"].search("see /opt/tool/x")
    assert FORBIDDEN_IN_FILES["a path of one machine"].search("'/home/someone/x'")
    assert FORBIDDEN_IN_FILES["a package index"].search("pip install --index-url https://host/simple")


def test_no_two_test_modules_have_one_name():
    """pytest imports them by their bare names, and stops at the second."""
    names = Counter(path.name for path in (REPOSITORY / "tests").rglob("test_*.py"))
    assert [name for name, number in names.items() if number > 1] == []
