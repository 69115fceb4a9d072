"""Who may import whom: design.md's picture, as a walk over the syntax trees."""

import ast
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from source_tree import REPOSITORY, Source, imports, package_sources, parse, room_of

# Room -> rooms of this package it may import. A room may always import itself and the package's version.
# Files, tables, versions and the names of rules, for every room.
TOOLS = {"rule_table", "errors", "files", "policy_config", "provenance", "secrets", "tables"}
PURE = TOOLS | {"upstream"} | {"config", "cost_model", "controller", "simulator", "metrics"}
# What every room that runs engines builds on.
ENGINES = PURE | {"drafter", "sampling", "engine.weights"}
FRAMEWORKS = ENGINES | {"dashboards", "engine", "tasks", "patching", "cleanup", "nodes", "training_job"}
ROOMS = {
    "__init__": set(),
    "errors": {"secrets"},
    "files": {"errors"},
    "policy_config": {"errors", "files"},
    "tables": set(),
    "secrets": set(),
    "own_logs": set(),
    "provenance": {"errors", "secrets"},
    "upstream": {"errors", "provenance"},
    "cache": set(),
    "patching": {"errors"},
    "cleanup": {"errors"},
    "nodes": {"errors"},
    "serve": {"cleanup", "config", "errors", "secrets"},
    "certificate": {"cache", "errors", "files", "provenance"},
    "rule_table": set(),
    "config": {"errors", "rule_table"},
    "cost_model": TOOLS | {"config"},
    "controller": TOOLS | {"config", "cost_model"},
    "simulator": TOOLS | {"config", "cost_model", "controller", "drafter"},
    "metrics": {"errors", "config", "files", "controller"},
    "drafter": {"errors", "config", "cache", "files", "controller"},
    "sampling": {"errors", "drafter"},
    "training_runs": {"errors", "files", "metrics"},
    "dashboards": {"errors", "files", "config", "metrics", "provenance", "training_runs"},
    "summary": {"metrics", "training_runs", "tables"},
    "tasks": TOOLS | {"config", "cache"},
    "engine.weights": {"errors", "drafter"},
    "engine": ENGINES | {"cache", "patching", "certificate"},
    "engine.cpu": ENGINES | {"engine"},
    "engine.gpu": ENGINES | {"engine", "certificate"},
    "measuring": ENGINES | {"engine", "engine.cpu", "engine.gpu"},
    "training_job": ENGINES | {"engine", "nodes"},
    "verl_plugin": FRAMEWORKS | {"own_logs"},
    "openrlhf_plugin": FRAMEWORKS,
    "bench": PURE,
    "gpu_check": ENGINES | {"engine", "engine.gpu", "measuring", "certificate", "cleanup", "bench", "tasks"},
    "doctor": PURE,
    "__main__": {"errors", "secrets"},
}
# Gear that no engine of a user's may carry: who may import it, at whatever time.
MEASURERS = {"measuring", "bench", "gpu_check"}
# Rooms that may import anything of the package inside a function.
LAZY_ROOMS = {"__main__", "doctor", "bench", "tasks"}
# Room -> packages of others that it may import. Some come with the upstream itself: filelock with torch, pyarrow and
# omegaconf with veRL, psutil with TransferQueue.
UPSTREAM = {
    "config": {"pydantic"},
    "certificate": {"pydantic"},
    "cost_model": {"numpy", "scipy"},
    "controller": {"numpy"},
    "simulator": {"numpy"},
    "drafter": {"torch", "triton", "numpy"},
    "sampling": {"torch"},
    "training_runs": {"numpy", "yaml"},
    "dashboards": {"wandb_workspaces", "numpy", "plotly", "jinja2", "markupsafe"},
    "policy_config": {"huggingface_hub"},
    "upstream": {"packaging"},
    "cleanup": {"psutil"},
    "nodes": {"ray"},
    "training_job": {"ray", "omegaconf", "pyarrow"},
    "doctor": {"packaging"},
    "tasks": {"torch", "transformers", "tokenizers", "pyarrow", "filelock", "gguf"},
    "engine.weights": {"vllm", "torch"},
    "engine": {"vllm", "torch", "transformers", "numpy", "filelock", "prometheus_client"},
    "engine.cpu": {"vllm", "torch", "numpy"},
    "engine.gpu": {"vllm", "torch", "numpy"},
    "measuring": {"vllm", "torch"},
    "verl_plugin": {
        "verl",
        "ray",
        "hydra",
        "omegaconf",
        "torch",
        "transformers",
        "numpy",
        "psutil",
    },
    "openrlhf_plugin": {"openrlhf", "ray", "torch", "omegaconf", "yaml", "deepspeed"},
    "bench": {"numpy", "torch", "transformers"},
    "gpu_check": {"vllm", "torch", "triton", "transformers", "numpy", "scipy", "pydantic"},
}


def faults(source: Source) -> list[str]:
    """Imports of `source` that the tables above do not allow."""
    found = []
    for item in imports(source):
        top, *below = item.module.split(".")
        where = f"{source.path}:{item.line}: {source.room} imports {item.module}"
        if top == "efficient_rollout":
            room = room_of(below)
            is_own = room == source.room or room.startswith("__")
            is_lazy = item.is_lazy and source.room in LAZY_ROOMS
            is_ours = is_own or is_lazy or room in ROOMS[source.room]
            if not is_ours or (room == "measuring" and source.room not in MEASURERS):
                found.append(where)
        elif top not in sys.stdlib_module_names and top not in UPSTREAM.get(source.room, set()):
            found.append(where)
    return found


def circles(sources: Iterable[Source]) -> list[list[str]]:
    """Groups of modules that import one another, in functions too: none can be understood, or loaded, alone."""
    modules = {_module(source): source for source in sources}
    reached = {name: _reached(name, modules) for name in modules}
    found = {frozenset(other for other in reached[name] if name in reached[other]) for name in modules}
    return sorted(sorted(group) for group in found if group)


def _module(source: Source) -> str:
    return ".".join(source.path.with_suffix("").parts).removesuffix(".__init__")


def _reached(start: str, modules: Mapping[str, Source]) -> set[str]:
    found: set[str] = set()
    pending = [start]
    while pending:
        name = pending.pop()
        for item in imports(modules[name]):
            # `from module import name` may import a module or something in one.
            target = item.module if item.module in modules else item.module.rpartition(".")[0]
            if target in modules and target != name and target not in found:
                found.add(target)
                pending.append(target)
    return found


@pytest.mark.parametrize("source", package_sources(), ids=lambda source: str(source.path))
def test_module_imports_only_what_its_room_may(source):
    assert source.room in ROOMS, f"{source.path}: a new room; add it to ROOMS, and to the design"
    assert faults(source) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("cost_model/x.py", "import torch"),
        ("cost_model/x.py", "from efficient_rollout.controller.rule import Decision"),
        ("cost_model/x.py", "def f():\n    import vllm"),
        ("controller/x.py", "from efficient_rollout import drafter"),
        ("drafter/x.py", "try:\n    from vllm import _custom_ops\nexcept ImportError:\n    pass"),
        ("verl_plugin/x.py", "import vllm"),
        ("engine/x.py", "import verl.utils"),
        ("engine/x.py", "from efficient_rollout.verl_plugin import checks"),
        ("engine/x.py", "from tests.unit import anything"),
        ("__main__.py", "from efficient_rollout.verl_plugin.main import train"),
        ("engine/x.py", "from efficient_rollout.measuring import offline"),
        ("verl_plugin/x.py", "def f():\n    from efficient_rollout.measuring.probe import measure"),
        ("engine/x.py", "from efficient_rollout.engine.cpu import worker"),
        ("engine/cpu/x.py", "from efficient_rollout.engine.gpu.graphs import complete"),
        ("engine/weights/x.py", "from efficient_rollout.engine import ledger"),
        ("metrics/x.py", "import numpy"),
        ("dashboards/x.py", "import efficient_rollout.engine"),
    ],
)
def test_the_check_sees_a_forbidden_import(path, text):
    assert len(faults(parse(Path("efficient_rollout") / path, text))) == 1


def test_the_check_allows_lazy_and_type_only_imports():
    lazy = "def run():\n    from efficient_rollout.verl_plugin.main import train\n"
    assert faults(parse(Path("efficient_rollout/__main__.py"), lazy)) == []
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import vllm\n"
    assert faults(parse(Path("efficient_rollout/drafter/x.py"), typed)) == []


def test_no_modules_import_one_another():
    assert circles(package_sources()) == []


def test_the_check_sees_a_circle_through_a_function():
    texts = {
        "a/x.py": "from efficient_rollout.a.y import f",
        "a/y.py": "def f():\n    from efficient_rollout.a import z",
        "a/z.py": "import efficient_rollout.a.x",
        "a/w.py": "from efficient_rollout.a.x import g\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from efficient_rollout.a.v import h",
        "a/v.py": "from efficient_rollout.a.w import g",
    }
    sources = [parse(Path("efficient_rollout") / path, text) for path, text in texts.items()]
    assert circles(sources) == [[f"efficient_rollout.a.{name}" for name in "xyz"]]


def test_names_that_tests_and_scripts_import_exist():
    """Part of the tests run in environments of their own: a name that moved would be seen there alone, and late."""
    missing = [
        f"{path.relative_to(REPOSITORY)}:{imported.line}: {imported.module}"
        for folder in ("tests", "scripts", "recipes")
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for imported in imports(parse(path.relative_to(REPOSITORY), path.read_text(encoding="utf-8")))
        if imported.module.startswith("efficient_rollout.") and not _exists(imported.module)
    ]
    assert not missing, missing


def _exists(module: str) -> bool:
    """Whether `module` is one, or a name that the module before its last point defines or imports."""
    path = REPOSITORY.joinpath(*module.split("."))
    if path.is_dir() or path.with_suffix(".py").exists():
        return True
    parent = next(
        (file for file in (path.parent.with_suffix(".py"), path.parent / "__init__.py") if file.exists()), None
    )
    return parent is not None and any(
        path.name == getattr(node, "name", None)
        or path.name == getattr(node, "id", None)
        or path.name in (getattr(alias, "asname", None) or alias.name for alias in getattr(node, "names", []))
        for node in ast.walk(ast.parse(parent.read_text(encoding="utf-8")))
        if isinstance(node, ast.stmt | ast.Name) and not isinstance(node, ast.Global | ast.Nonlocal)
    )
