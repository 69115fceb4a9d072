"""What `scripts/gpu_contract.sh` does in Python: hold a CUDA wheel of vLLM against what the GPU path stands on, no GPU.

gpu_contract.py VERSION WHEEL LIBCUDART FOLDER   check one wheel, unpacked into FOLDER

The wheel is unpacked, not installed, and its Python comes before that of the environment's own vLLM. Its extension
links against libcuda and libtorch_cuda, but registering operators needs none of their symbols: two empty libraries
stand in, and symbols are bound lazily. So operators have their real schemas here, and calling one ends the process.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

EXTENSION = "_C_stable_libtorch.abi3.so"
# What the GPU path stands on is listed beside the tests.
TABLES = Path(__file__).parents[1] / "tests" / "contract"
STAND_INS = ("libcuda.so.1", "libtorch_cuda.so")


def unpack(wheel: Path, folder: Path) -> None:
    """A wheel's Python, metadata, and one extension; the other 0.5 GB stay packed."""
    with zipfile.ZipFile(wheel) as archive:
        wanted = (".py", "/METADATA", EXTENSION)
        archive.extractall(folder, [name for name in archive.namelist() if name.endswith(wanted)])


def load_cuda_runtime(wheel: Path, folder: Path) -> None:
    """Load libcudart out of its wheel, for every library that names it."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if "/libcudart.so." in name)
        ctypes.CDLL(archive.extract(name, folder), mode=ctypes.RTLD_GLOBAL)


def register_operators(extension: Path, folder: Path) -> str:
    """Load the extension. Returns why not; empty where its operators are registered now."""
    source = folder / "empty.c"
    source.write_text("int empty;\n")
    for name in STAND_INS:
        library = folder / name
        subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", library, source], check=True)
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    try:
        ctypes.CDLL(str(extension), mode=os.RTLD_LAZY | os.RTLD_GLOBAL)
    except OSError as error:
        return str(error)
    return ""


def operator_arguments(name: str) -> list[str]:
    """Arguments of `torch.ops._C.<name>`, in order; none where it does not exist, or not for CUDA."""
    import torch

    operator = getattr(torch.ops._C, name, None)  # noqa: SLF001
    if operator is None or not torch._C._dispatch_has_kernel_for_dispatch_key(f"_C::{name}", "CUDA"):  # noqa: SLF001
        return []
    return [argument.name for argument in operator.default._schema.arguments]  # noqa: SLF001


def operator_breaches() -> Iterator[str]:
    """What of the table of operators the loaded extension has otherwise."""
    from efficient_rollout.gpu_check.products import OPERATORS

    for name, wanted in OPERATORS.items():
        arguments = operator_arguments(name)
        if arguments != wanted.split():
            yield f"operator {name} takes {', '.join(arguments) or 'nothing: it is missing'}, not {wanted}"


def check(version: str, wheel: Path, runtime: Path, folder: Path) -> list[str]:
    """Everything that the wheel has otherwise, a sentence each."""
    unpack(wheel, folder)
    sys.path[:0] = [str(folder), str(TABLES)]
    import vllm

    if not Path(vllm.__file__).is_relative_to(folder) or vllm.__version__ != version:
        return [f"vLLM {vllm.__version__} was imported from {vllm.__file__}, not {version} from {folder}"]
    from names_of_vllm_v2 import breaches

    found = list(breaches())
    load_cuda_runtime(runtime, folder)
    problem = register_operators(folder / "vllm" / EXTENSION, folder)
    return found + ([f"{EXTENSION} cannot be loaded: {problem}"] if problem else [*operator_breaches()])


def main(arguments: list[str]) -> int:
    """Check one wheel, and say what was found. Returns the exit code: 1 for a breach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version")
    for name in ("wheel", "runtime", "folder"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args(arguments)
    started = time.monotonic()
    found = check(given.version, given.wheel, given.runtime, given.folder)
    for what in found:
        sys.stdout.write(f"gpu_contract: {given.version} BREACH: {what}\n")
    seconds = time.monotonic() - started
    sys.stdout.write(f"gpu_contract: {given.version}: {len(found) or 'no'} breaches, {seconds:.0f} s\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
