"""What `scripts/gpu_contract.sh` does in Python: hold a CUDA wheel of vLLM against what the GPU path stands on, no GPU.

gpu_contract.py check VERSION WHEEL LIBCUDART FOLDER   check one wheel, unpacked into FOLDER; write FOLDER.json
gpu_contract.py compare JSON JSON...                   what changed between them, in what the GPU path touches

The wheel is unpacked, not installed, and its Python comes before that of the environment's own vLLM. Its extension
links against libcuda and libtorch_cuda, but registering operators needs none of their symbols: two empty libraries
stand in, and symbols are bound lazily. So operators have their real schemas here, and calling one ends the process.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

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


def snapshot() -> dict[str, str]:
    """Parameters of everything the GPU path calls or overrides, and arguments of its operators."""
    from checked_names import parameters
    from names_of_vllm_v2 import CALLED, MOVED, OVERRIDDEN

    from efficient_rollout.gpu_check.products import OPERATORS

    taken = {}
    for target in (*CALLED, *OVERRIDDEN, *(name for names in MOVED for name in names)):
        try:
            taken[target] = " ".join(str(value).partition(":")[0] for value in parameters(target).values())
        except ImportError:
            taken[target] = "(missing)"
    return taken | {f"operator {name}": " ".join(operator_arguments(name)) for name in OPERATORS}


def check(version: str, wheel: Path, runtime: Path, folder: Path) -> list[str]:
    """Everything that the wheel has otherwise, a sentence each; writes the snapshot beside the folder."""
    unpack(wheel, folder)
    sys.path[:0] = [str(folder), str(TABLES)]
    import vllm

    if not Path(vllm.__file__).is_relative_to(folder) or vllm.__version__ != version:
        return [f"vLLM {vllm.__version__} was imported from {vllm.__file__}, not {version} from {folder}"]
    from names_of_vllm_v2 import breaches

    found = list(breaches())
    load_cuda_runtime(runtime, folder)
    problem = register_operators(folder / "vllm" / EXTENSION, folder)
    found += [f"{EXTENSION} cannot be loaded: {problem}"] if problem else operator_breaches()
    folder.with_suffix(".json").write_text(json.dumps({"version": version, "takes": snapshot()}, indent=1) + "\n")
    return found


def changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """What changed between two snapshots, one line for each target."""
    for target in old["takes"]:
        before, after = old["takes"][target].split(), new["takes"][target].split()
        gone, come = [name for name in before if name not in after], [name for name in after if name not in before]
        if before != after:
            what = [f"- {' '.join(gone)}"] * bool(gone) + [f"+ {' '.join(come)}"] * bool(come)
            yield f"{target}: {'; '.join(what) or 'another order'}"


def say(lines: Iterable[str]) -> None:
    """Write lines for whoever runs the script."""
    for line in lines:
        sys.stdout.write(f"gpu_contract: {line}\n")


def main(arguments: list[str]) -> int:
    """Run one of the commands in the module's docstring. Returns the exit code: 1 for a breach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("check")
    one.add_argument("version")
    for name in ("wheel", "runtime", "folder"):
        one.add_argument(name, type=Path)
    several = commands.add_parser("compare")
    several.add_argument("snapshots", type=Path, nargs="+")
    given = parser.parse_args(arguments)
    if given.command == "compare":
        for old, new in pairwise(json.loads(path.read_text()) for path in given.snapshots):
            found = list(changes(old, new))
            say([f"{old['version']} -> {new['version']}: {len(found)} changes in what the GPU path touches"])
            say(f"  {line}" for line in found)
        return 0
    started = time.monotonic()
    found = check(given.version, given.wheel, given.runtime, given.folder)
    say(f"{given.version} BREACH: {what}" for what in found)
    say([f"{given.version}: {len(found) or 'no'} breaches, {time.monotonic() - started:.0f} s"])
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
