"""The steps of the check, cheap ones first, and the process of one on a GPU.

python -m efficient_rollout.gpu_check.steps NAME FUNCTION FOLDER SHAPES
"""

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from efficient_rollout.files import write_json
from efficient_rollout.gpu_check.stand import CheckFailed, Measured, Stand

EXIT_FAILED = 1


@dataclass(frozen=True, slots=True)
class Step:
    """Describes one step, in a process of its own."""

    name: str  # of its log and its results
    function: str  # "module:function", of a stand
    limit_s: float  # seconds after which it is ended, and has failed
    certifies: bool = True  # whether drafting is refused where it fails; the others only measure
    engines_apart: bool = False  # whether its engines, which stand beside each other, have processes of their own


_ROOM = "efficient_rollout.gpu_check."
# Minutes go to starting engines, and to compiling what none has compiled before.
STEPS = (
    Step("operators", f"{_ROOM}products:check_operators", 300),
    Step("kernels", f"{_ROOM}kernels:check_kernels", 900),
    Step("products", f"{_ROOM}products:check_products", 600),
    Step("same-samples", f"{_ROOM}samples:check_same_samples", 1800),
    Step("graphs", f"{_ROOM}engines:check_graphs", 1800),
    Step("distribution", f"{_ROOM}distribution:check_distribution", 1800),
    Step("faults", f"{_ROOM}engines:check_faults", 900),
    Step("sync", f"{_ROOM}engines:check_sync", 1200),
    Step("sleep", f"{_ROOM}engines:check_sleep", 1200),
    # Before the two that take its numbers: what a policy's own drafts are worth.
    Step("acceptance", f"{_ROOM}rollout:check_acceptance", 7200, certifies=False),
    Step("latency", f"{_ROOM}rollout:check_latency", 7200, certifies=False),
    Step("rollout", f"{_ROOM}rollout:check_rollout", 7200, certifies=False, engines_apart=True),
)
# What certifies in eight minutes: the kernels, and one shape of engine. Steps behind it go on in a later run.
QUICK_STEPS = (
    Step("operators", f"{_ROOM}products:check_operators", 40),
    Step("kernels", f"{_ROOM}kernels:check_kernels", 120),
    Step("products", f"{_ROOM}products:check_products", 60),
    Step("quick", f"{_ROOM}engines:check_quick", 260),
)
# What needs torch and Triton alone, in three minutes.
KERNEL_STEPS = (
    Step("kernels", f"{_ROOM}kernels:check_kernels", 80),
    Step("requantizing", f"{_ROOM}kernels:measure_requantizing", 60, certifies=False),
    Step("sampling", f"{_ROOM}kernels:check_sampling", 40, certifies=False),
)
# What the step's process alone gets: nothing that asks the network, and, mostly, engines that live in it.
VARIABLES = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
_ENGINES_APART = "VLLM_ENABLE_V1_MULTIPROCESSING"
_GPUS = "CUDA_VISIBLE_DEVICES"


def command(step: Step, folder: Path, shapes: tuple[str, ...]) -> list[str]:
    """Return what starts the process of a step; without shapes, of one that needs no vLLM."""
    # One GPU, the first: a trainer of transformers would share its batches out over all that it sees.
    gpu = os.environ.get(_GPUS, "0").split(",")[0]
    given = {_ENGINES_APART: str(int(step.engines_apart)), _GPUS: gpu, **VARIABLES}
    variables = [f"{name}={value}" for name, value in given.items()]
    program = [sys.executable, "-m", f"{_ROOM}steps"]
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
        worker=f"{_ROOM}gpu_worker.UncertifiedGpuWorker",
        recording_worker=f"{_ROOM}gpu_worker.UncertifiedRecordingGpuWorker",
        start=LLM,
        operators=torch.ops._C,  # noqa: SLF001 - they have no other name
        shapes=shapes,
    )


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
        # Without shapes no engine can be started: torch and Triton are all there is.
        stand = gpu_stand(Path(folder), names) if names else Stand(device="cuda", folder=Path(folder))
        run(stand, name, function)
    except CheckFailed as failure:
        sys.stderr.write(f"gpu-check: {name} FAILED: {failure}\n")
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
