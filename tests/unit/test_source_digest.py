"""The digest of a certificate follows what code does, and nothing else."""

from pathlib import Path

import pytest

from efficient_rollout import certificate
from efficient_rollout.source_digest import code_digest

FILES = {
    "drafter/cuda/kernel.py": '"""One."""\nfrom package.drafter.packed import pack\n\n\ndef run(x): return pack(x)\n',
    "drafter/packed.py": "from package.engine import ranks\n\n\ndef pack(x):\n    return ranks.of(x)\n",
    "drafter/cpu/kernel.py": "x = 1\n",
    "engine/gpu/worker.py": "def f():\n    from package.drafter.cpu import kernel\n    import package.metrics.names\n",
    "engine/ranks.py": "def of(x):\n    return x\n",
    "engine/unused.py": "x = 1\n",
    "metrics/names.py": "x = 1\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "package"


def digest(package: Path) -> str:
    return code_digest(
        package, ("drafter/cuda", "engine/gpu"), within=("drafter", "engine"), without=("drafter/cpu", "engine/cpu")
    )


@pytest.mark.parametrize(
    "name", ["drafter/cuda/kernel.py", "drafter/packed.py", "engine/gpu/worker.py", "engine/ranks.py"]
)
def test_code_that_runs_on_a_gpu_counts_however_far_it_is_imported(package: Path, name: str) -> None:
    before = digest(package)
    (package / name).write_text(FILES[name] + "\n\nx = 2\n")
    assert digest(package) != before


@pytest.mark.parametrize("name", ["drafter/cpu/kernel.py", "engine/unused.py", "metrics/names.py"])
def test_a_cpu_s_file_another_room_s_and_one_that_nothing_imports_do_not(package: Path, name: str) -> None:
    before = digest(package)
    (package / name).write_text("x = 2\n")
    assert digest(package) == before


def test_docstrings_comments_and_layout_do_not(package: Path) -> None:
    before = digest(package)
    (package / "drafter/cuda/kernel.py").write_text(
        '"""Another text."""\nfrom package.drafter.packed import pack\n\n'
        'def run(x):\n    """Runs."""\n    return pack(  # so\n        x)\n'
    )
    assert digest(package) == before


def test_the_certificate_s_own_covers_kernels_and_runner_and_not_the_check() -> None:
    root = Path(certificate.__file__).parent
    kernel, check = root / "drafter/cuda/quantize.py", root / "gpu_check/plan.py"
    assert kernel.is_file()
    assert check.is_file()
    assert certificate._ROOTS == ("drafter/cuda", "engine/gpu")
    assert not any(folder.startswith("gpu_check") for folder in (*certificate._ROOTS, *certificate._FOLDERS))
