"""The controller's rule of an engine, and the latency profile that it needs: named, or measured once and cached."""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efficient_rollout import __version__
from efficient_rollout.cache import cache_directory
from efficient_rollout.config import Settings
from efficient_rollout.controller.rule import Rule, RuleInputs, make_rule
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.cost_model.model_shape import read_model_shape
from efficient_rollout.cost_model.profile import Profile, ProfileKey, load_profile
from efficient_rollout.engine.environment import cores_of_first, cores_of_machine, installed_vllm, with_cores_of_first
from efficient_rollout.errors import InputFileError, ProfileError
from efficient_rollout.provenance import hardware
from efficient_rollout.rule_table import RULES_WITH_PROFILE

logger = logging.getLogger(__name__)

_PROCESS = "efficient_rollout.measuring.profile_process"
_LIMIT_S = 900.0  # engine start, compilation and 60 s of measurements; past it the process hangs
_DIGEST_LETTERS = 16


def profile_key(model: str, scheme: str, *, tensor_parallel_size: int = 1) -> ProfileKey:
    """Return what a latency profile must have been measured on to describe an engine on this machine.

    It is the same in an engine's process and in the one that starts it. `scheme` is from `profiled_scheme`.

    Raises:
        InputFileError: The policy has no readable `config.json`.
    """
    return ProfileKey(
        hardware=_hardware(tensor_parallel_size),
        model_shape=read_model_shape(model).description,
        scheme=scheme,
        versions=" ".join(installed_vllm()),
        parallel_layout=f"tp{tensor_parallel_size} pp1",
    )


def profiled_scheme(settings: Settings) -> str:
    """Return the settings that decide which kernels run, for a profile's key."""
    kernel = settings.verify_kernel
    return settings.drafter.scheme + ("" if kernel == "auto" else f", verify_kernel {kernel}")


def _hardware(num_workers: int) -> str:
    from vllm import envs
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return str(current_platform.get_device_name())
    text = f"{hardware()['cpu']}, {len(cores_of_machine()[0])} cores"
    # vLLM gives each engine one thread per physical core it may use, unless it is told otherwise.
    if (bound := cores_of_first(num_workers)) != "auto":
        text += f", threads bound to {bound}"
    if envs.VLLM_CPU_NUM_OF_RESERVED_CPU is not None:
        text += f", {envs.VLLM_CPU_NUM_OF_RESERVED_CPU} reserved"
    return text


def check_profile(settings: Settings, model: str, *, tensor_parallel_size: int = 1) -> Profile | None:
    """Refuse a profile that an engine with these settings would refuse, before one is started.

    Returns:
        The profile; None where the settings name none, or drafting is disabled.

    Raises:
        ProfileError: `controller.profile` is missing, malformed, or belongs to another machine, policy, scheme or
            version. The message names every difference, and the command that makes a new one.
        InputFileError: The policy has no readable `config.json`.
    """
    path = settings.controller.profile
    if path is None or not settings.enabled:
        return None
    of_ranks = f" --tensor-parallel-size {tensor_parallel_size}" if tensor_parallel_size > 1 else ""
    remedy = (
        f"efficient-rollout calibrate --model {model} --scheme {settings.drafter.scheme} "
        f"--verify-kernel {settings.verify_kernel} --out {path}{of_ranks}"
    )
    profile = load_profile(Path(path).expanduser(), remedy=remedy)
    key = profile_key(model, profiled_scheme(settings), tensor_parallel_size=tensor_parallel_size)
    profile.require(key, remedy=remedy)
    return profile


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRequest:
    """Says what is to be measured, for `profile_process.py`, which writes it to `out`."""

    model: str
    settings: dict[str, Any]
    dtype: str
    is_compiled: bool
    out: str
    tensor_parallel_size: int


def with_profile(
    model: str, settings: Settings, *, dtype: str = "auto", is_compiled: bool = True, tensor_parallel_size: int = 1
) -> Settings:
    """Return settings whose rule has the latency profile it needs; to be called before an engine is started.

    A profile the settings name is checked. Where a rule needs one and none is named, `ensure_profile` finds or
    makes it: that takes a minute or two the first time, and nothing after that.

    Args:
        model: The policy's directory, or its name on the Hugging Face Hub.
        settings: The whole tree.
        dtype: Of the engine, as vLLM's option.
        is_compiled: The engine's `enforce_eager` is false.
        tensor_parallel_size: The engine's own; its workers' cores are bound already (`environment.py`).

    Raises:
        ProfileError: The profile is missing, malformed or another's, or none could be made.
        InputFileError: The policy has no readable `config.json`, or the cache cannot be written.
    """
    controller = settings.controller
    if not settings.enabled or (controller.profile is None and controller.rule not in RULES_WITH_PROFILE):
        return settings
    if controller.profile is not None:
        check_profile(settings, model, tensor_parallel_size=tensor_parallel_size)
        path = Path(controller.profile).expanduser().resolve()
    else:
        path = ensure_profile(
            model, settings, dtype=dtype, is_compiled=is_compiled, tensor_parallel_size=tensor_parallel_size
        )
    return settings.model_copy(update={"controller": controller.model_copy(update={"profile": str(path)})})


def ensure_profile(
    model: str, settings: Settings, *, dtype: str = "auto", is_compiled: bool = True, tensor_parallel_size: int = 1
) -> Path:
    """Return the cached profile of this machine, policy, scheme and engine, measured first where there is none.

    Of several processes that want the same profile, one measures and the others wait for it. Arguments and errors are
    those of `with_profile`; of the settings the drafter counts, and the largest number of draft tokens.
    """
    from filelock import FileLock

    key = profile_key(model, profiled_scheme(settings), tensor_parallel_size=tensor_parallel_size)
    path = cache_directory("profiles") / f"{_digest(key, settings, dtype, is_compiled)}.json"
    if _is_usable(path, key):
        return path
    folder = Path(model).expanduser()
    measured = settings.with_lookup("off").to_dict()
    measured["controller"] = {"rule": "never", "max_draft_tokens": settings.controller.max_draft_tokens}
    request = CalibrationRequest(
        model=str(folder.resolve()) if folder.exists() else model,
        settings=measured,
        dtype=dtype,
        is_compiled=is_compiled,
        out=str(path),
        tensor_parallel_size=tensor_parallel_size,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not _is_usable(path, key):
                _measure(request, key)
    except OSError as error:
        raise InputFileError(
            f"cannot write the latency profile {path}: {error.strerror or error}; make {path.parent} writable, set "
            f"XDG_CACHE_HOME to a directory that is, or name a profile in controller.profile"
        ) from error
    return path


def _digest(key: ProfileKey, settings: Settings, dtype: str, is_compiled: bool) -> str:
    facts = {
        "key": asdict(key),
        "drafter": settings.with_lookup("off").drafter.model_dump(mode="json"),
        "max_draft_tokens": settings.controller.max_draft_tokens,
        "dtype": dtype,
        "is_compiled": is_compiled,
        "efficient_rollout": __version__,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:_DIGEST_LETTERS]


def _is_usable(path: Path, key: ProfileKey) -> bool:
    if path.is_file():
        try:
            load_profile(path).require(key, remedy="remove it")
            return True
        except ProfileError as error:
            # Of another schema version, or damaged: the cache is ours to write again.
            logger.warning("measuring again, because the cached latency profile cannot be used: %s", error)
    return False


def _measure(request: CalibrationRequest, key: ProfileKey) -> None:
    # A warning, because it is a minute of silence otherwise: nobody configured logging in a plain script.
    logger.warning("measuring a latency profile of %s, once for this machine: a minute or two", request.model)
    started = time.monotonic()
    _measure_in_own_process(request)
    load_profile(Path(request.out)).require(key, remedy="measure with the same cores and thread binding")
    logger.warning("measured the latency profile %s in %.0f s", request.out, time.monotonic() - started)


def _measure_in_own_process(request: CalibrationRequest) -> None:
    """Measure without leaving anything behind in this process."""
    log = Path(request.out).with_suffix(".log")
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", _PROCESS], stdin=subprocess.PIPE, stdout=output, stderr=output, text=True,
            start_new_session=True, env=with_cores_of_first(request.tensor_parallel_size),
        )  # fmt: skip
        try:
            process.communicate(json.dumps(asdict(request)), timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise _failure(request, f"it was not done after {_LIMIT_S:.0f} s", log) from None
        finally:
            # The engine's processes are in its session; after a fault or Ctrl-C none may stay behind.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise _failure(request, lines[-1] if lines else f"exit code {process.returncode}", log)
    log.unlink()


def _failure(request: CalibrationRequest, fault: str, log: Path) -> ProfileError:
    return ProfileError(
        f"cannot measure a latency profile of {request.model}: {fault} (all of its output: {log}). Name one in "
        f"controller.profile, made with: efficient-rollout calibrate --model {request.model} --out FILE; or choose a "
        f"controller.rule that needs none, such as batch_threshold"
    )


def rule_from(settings: Settings, model: str, *, tensor_parallel_size: int = 1) -> Rule:
    """Make the rule the settings name, with arguments and errors of `check_profile`.

    Raises:
        ConfigError: The rule needs a profile and the settings name none.
    """
    controller = settings.controller
    profile = check_profile(settings, model, tensor_parallel_size=tensor_parallel_size)
    inputs = RuleInputs(
        max_draft_tokens=controller.max_draft_tokens,
        num_draft_tokens=controller.num_draft_tokens,
        max_running_requests=controller.max_running_requests,
        table=None if profile is None else TickTable(profile.model, controller.max_draft_tokens),
    )
    return make_rule(controller.rule, inputs)
