"""The process of one step on a GPU: python -m efficient_rollout.gpu_check.child NAME FUNCTION FOLDER SHAPES"""

import importlib
import os
import sys
from pathlib import Path

from efficient_rollout.files import write_json
from efficient_rollout.gpu_check.plan import EXIT_FAILED, Step
from efficient_rollout.gpu_check.stand import CheckFailed, Measured, Sizes, Stand

# What the step's process alone gets: nothing that asks the network, and, mostly, engines that live in it.
_GPUS = "CUDA_VISIBLE_DEVICES"
_ENGINES_APART = "VLLM_ENABLE_V1_MULTIPROCESSING"
VARIABLES = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}


def command(step: Step, folder: Path, shapes: tuple[str, ...]) -> list[str]:
    """Return what starts the process of a step; without shapes, of one that needs no vLLM."""
    # One GPU, the first: a trainer of transformers would share its batches out over all that it sees.
    gpu = os.environ.get(_GPUS, "0").split(",")[0]
    given = {_ENGINES_APART: str(int(step.engines_apart)), _GPUS: gpu, **VARIABLES}
    variables = [f"{name}={value}" for name, value in given.items()]
    program = [sys.executable, "-m", "efficient_rollout.gpu_check.child"]
    return ["env", *variables, *program, step.name, step.function, str(folder), ",".join(shapes)]


def measured_path(folder: Path, name: str) -> Path:
    """Return where a step that passed writes what it measured."""
    return folder / f"{name}.json"


def gpu_stand(folder: Path, shapes: tuple[str, ...]) -> Stand:
    """Make a stand on this process's first GPU, in the dtype that policies are trained in."""
    import torch
    from vllm import LLM
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    return Stand(
        device="cuda",
        folder=folder,
        dtype="bfloat16",
        sizes=Sizes(),
        worker="efficient_rollout.gpu_check.gpu_worker.UncertifiedGpuWorker",
        recording_worker="efficient_rollout.gpu_check.gpu_worker.UncertifiedRecordingGpuWorker",
        start=LLM,
        operators=torch.ops._C,  # noqa: SLF001 - they have no other name
        shapes=shapes,
    )


def kernel_stand(folder: Path, device: str = "cuda", sizes: Sizes | None = None) -> Stand:
    """Make a stand for steps that need torch and Triton alone; no engine can be started there."""
    return Stand(device=device, folder=folder, dtype="bfloat16", sizes=sizes or Sizes())


def run(stand: Stand, name: str, function: str) -> Measured:
    """Run a step, and write what it measured.

    Raises:
        CheckFailed: Something was otherwise than it must be.
    """
    module, _, attribute = function.partition(":")
    measured: Measured = getattr(importlib.import_module(module), attribute)(stand)
    write_json(measured_path(stand.folder, name), measured)
    return measured


def main(arguments: list[str]) -> int:
    """Run one step; return the process's exit code."""
    name, function, folder, shapes = arguments
    try:
        names = tuple(filter(None, shapes.split(",")))
        run(gpu_stand(Path(folder), names) if names else kernel_stand(Path(folder)), name, function)
    except CheckFailed as failure:
        sys.stderr.write(f"gpu-check: {name} FAILED: {failure}\n")
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
