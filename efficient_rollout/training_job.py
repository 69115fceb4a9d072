"""What jobs of veRL and of OpenRLHF do alike: checks before Ray starts, the run's own files, and the end."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from omegaconf import OmegaConf
from ray.exceptions import RayError

from efficient_rollout.config import Settings
from efficient_rollout.engine.checks import (
    check_build,
    check_certificate,
    check_model,
    check_scheme,
    check_vllm_version,
)
from efficient_rollout.engine.environment import waits_for_gpu
from efficient_rollout.engine.profiles import check_profile, with_profile
from efficient_rollout.errors import ConfigError, EfficientRolloutError, InputFileError, ours_behind
from efficient_rollout.files import write_json
from efficient_rollout.metrics.step_file import require_free
from efficient_rollout.nodes import require_on_every_node
from efficient_rollout.provenance import provenance
from efficient_rollout.secrets import without_secrets
from efficient_rollout.upstream import check_installed


def check_versions(framework: str) -> None:
    """Check the framework, vLLM and its device, which on a cluster of GPUs need not be here.

    Raises:
        UnsupportedVersionError: The framework or vLLM is missing or not supported.
        UnsupportedDeviceError: vLLM runs on a device that no engine of this package runs on.
    """
    check_installed(framework)
    check_vllm_version()
    check_build()


def check_policy(
    model: str,
    settings: Settings,
    *,
    dtype: str,
    tensor_parallel_size: int,
    options: Mapping[str, Any],
    device: str | None = None,
) -> None:
    """Check that engines can draft for a policy; where they are on other machines, they check their device themselves.

    Args:
        model: Directory of a checkpoint, or a name on the Hugging Face Hub.
        settings: The whole tree.
        dtype: The engine's option, by vLLM's name, as are the next one and those in `options`.
        tensor_parallel_size: The same.
        options: The same.
        device: As in `torch.device.type`; None: vLLM's own.

    Raises:
        EfficientRolloutError: As `check_model`, `check_scheme`, `check_certificate` and `check_profile`.
    """
    check_model(model, settings, dtype=dtype, tensor_parallel_size=tensor_parallel_size, options=options)
    if not waits_for_gpu():
        check_scheme(settings, device)
        check_certificate(settings)
        check_profile(settings, model, tensor_parallel_size=tensor_parallel_size)


def measure_profile(
    model: str, settings: Settings, *, dtype: str, enforce_eager: bool, tensor_parallel_size: int
) -> None:
    """Measure the latency profile that engines will look for, while nothing else of the job runs yet.

    They find it in this node's cache; an engine on another node measures its own. Call when everything else is checked:
    it takes a minute or two where no earlier job on this machine had the same policy, scheme and versions. Nothing on a
    machine without the engines' device; ProfileError where it could not be measured.
    """
    if not waits_for_gpu():
        with_profile(
            model, settings, dtype=dtype, is_compiled=not enforce_eager, tensor_parallel_size=tensor_parallel_size
        )


def check_table(option: str, path: Path, key: str, key_option: str) -> None:
    """Check that rows of a file of prompts have a key; of files that are neither parquet nor JSON lines, nothing.

    Raises:
        InputFileError: They have not, or the file is missing or unreadable.
    """
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise InputFileError(f"{option}: {path} does not exist or is not a file")
    kind = path.suffix.removeprefix(".")
    try:
        if kind == "parquet":
            found = pyarrow.parquet.read_schema(path).names
        elif kind == "jsonl":
            with path.open(encoding="utf-8") as file:
                first = json.loads(file.readline())
            found = list(first) if isinstance(first, dict) else [f"a {type(first).__name__}"]
        else:
            return
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputFileError(f"{option}: {path} is not readable as {kind}: {error}") from error
    if key not in found:
        raise InputFileError(f"{option}: {path} has no {key!r} (it has {', '.join(found)}); set {key_option}")


def refuse(faults: Mapping[str, Any], message: str) -> None:
    """Raise ConfigError where options are at fault; their names stand in the place of the message's `{}`."""
    if found := [name for name, at_fault in faults.items() if at_fault]:
        raise ConfigError(message.format(", ".join(found)))


def write_run_files(directory: Path, tree: Any) -> None:
    """Write what a run is: its whole configuration, without secrets, and its provenance.

    Raises:
        ConfigError: Another job writes into the directory now.
    """
    directory.mkdir(parents=True, exist_ok=True)
    require_free(directory)
    OmegaConf.save(OmegaConf.create(without_secrets(tree)), directory / "config.yaml")
    write_json(directory / "provenance.json", provenance())


@contextmanager
def around_ray(
    take_signals: Callable[[], None],
    start: Callable[..., Any] | None = None,
    explain: Callable[[BaseException], EfficientRolloutError | None] = ours_behind,
) -> Iterator[None]:
    """Stand around a framework's entry point: what follows its `ray.init`, and whose error Ray's is.

    Args:
        take_signals: From `nothing_left_behind`.
        start: In the place of `ray.init`.
        explain: Returns what an error that Ray carried means to users; None where it is not this package's.

    Raises:
        PluginInactiveError: A node of the cluster lacks this package.
        EfficientRolloutError: What Ray carried here.
    """
    stock = ray.init

    def init(*args: Any, **kwargs: Any) -> Any:
        started = (start or stock)(*args, **kwargs)
        # Ray's own SIGTERM handler aborts this process, and with it the clean-up.
        take_signals()
        require_on_every_node()
        return started

    ray.init = init
    try:
        yield
    except RayError as error:
        if (ours := explain(error)) is None:
            raise
        raise ours from error
    finally:
        ray.init = stock
        ray.shutdown()
