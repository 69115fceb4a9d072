"""A newcomer can import and test the pure rooms with numpy alone."""

import subprocess
import sys

import pytest

SCRIPT = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not part of a pure installation")

BLOCKED = {"torch", "vllm", "verl", "ray", "hydra", "omegaconf", "transformers", "pydantic", "triton", "wandb"}
sys.meta_path.insert(0, Blocked())
package = importlib.import_module(sys.argv[1])
names = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
outside = {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
sys.stdout.write(" ".join(sorted(outside)))
"""


@pytest.mark.parametrize("room", ["cost_model", "controller", "simulator", "metrics"])
def test_room_imports_without_frameworks(room, repository):
    command = [sys.executable, "-c", SCRIPT, f"efficient_rollout.{room}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=repository)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert "efficient_rollout" in loaded
    assert not loaded & {"torch", "vllm", "verl", "ray", "pydantic"}


def test_help_needs_no_framework(repository):
    script = (
        "import sys; from efficient_rollout.__main__ import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=repository)
    assert not set(result.stdout.split()) & {"torch", "numpy", "pydantic", "vllm", "verl", "transformers"}
