"""Latency profiles made on this machine when a rule of the controller first needs one, and kept in a cache."""

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
from efficient_rollout.cost_model.profile import ProfileKey, load_profile
from efficient_rollout.engine.environment import with_cores_of_first
from efficient_rollout.engine.rules import check_profile, profile_key, profiled_scheme
from efficient_rollout.errors import InputFileError, ProfileError
from efficient_rollout.rule_table import RULES_WITH_PROFILE

logger = logging.getLogger(__name__)

_PROCESS = "efficient_rollout.measuring.profile_process"
_LIMIT_S = 900.0  # engine start, compilation and 60 s of measurements; past it the process hangs
_DIGEST_LETTERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRequest:
    """Says what is to be measured, for `profile_process.py`.

    Attributes:
        model: The policy's directory, absolute, or its name on the Hugging Face Hub.
        settings: As `Settings.to_dict()`.
        dtype: Of the policy, as vLLM's option.
        is_compiled: Compiled mode instead of eager.
        out: File to write.
        tensor_parallel_size: Of the engine.
    """

    model: str
    settings: dict[str, Any]
    dtype: str
    is_compiled: bool
    out: str
    tensor_parallel_size: int = 1


def with_profile(
    model: str, settings: Settings, *, dtype: str = "auto", is_compiled: bool = True, tensor_parallel_size: int = 1
) -> Settings:
    """Return settings whose rule has the latency profile it needs, checked.

    Call it before an engine is started.

    A profile the settings name is checked. Where a rule needs one and none is named, `ensure_profile` finds or
    makes it: that takes a minute or two the first time, and nothing after that.

    Args:
        model: The policy's directory, or its name on the Hugging Face Hub.
        settings: The whole tree.
        dtype: Of the engine, as vLLM's option.
        is_compiled: The engine's `enforce_eager` is false.
        tensor_parallel_size: The engine's own; its workers' cores are bound already (`environment.py`).

    Returns:
        The settings, with an absolute `controller.profile` where there is one.

    Raises:
        ProfileError: The profile is missing, malformed or another's, or none could be made.
        InputFileError: The policy has no readable `config.json`, or the cache cannot be written.
    """
    controller = settings.controller
    if not settings.enabled:
        return settings
    if controller.profile is not None:
        check_profile(settings, model, tensor_parallel_size=tensor_parallel_size)
        path = Path(controller.profile).expanduser().resolve()
    elif controller.rule in RULES_WITH_PROFILE:
        path = ensure_profile(
            model, settings, dtype=dtype, is_compiled=is_compiled, tensor_parallel_size=tensor_parallel_size
        )
    else:
        return settings
    return settings.model_copy(update={"controller": controller.model_copy(update={"profile": str(path)})})


def ensure_profile(
    model: str,
    settings: Settings,
    *,
    dtype: str = "auto",
    is_compiled: bool = True,
    tensor_parallel_size: int = 1,
) -> Path:
    """Return the cached profile of this machine, policy, scheme and engine.

    It is measured first where there is none.

    Of several processes that want the same profile, one measures and the others wait for it.

    Args:
        model: The policy's directory, or its name on the Hugging Face Hub.
        settings: The drafter, and the largest number of draft tokens.
        dtype: Of the engine, as vLLM's option.
        is_compiled: The engine's `enforce_eager` is false.
        tensor_parallel_size: The engine's own.

    Raises:
        ProfileError: It could not be measured.
        InputFileError: The policy has no readable `config.json`, or the cache cannot be written.
    """
    from filelock import FileLock

    key = profile_key(model, profiled_scheme(settings), tensor_parallel_size=tensor_parallel_size)
    path = cache_directory("profiles") / f"{_digest(key, settings, dtype, is_compiled)}.json"
    if _is_usable(path, key):
        return path
    request = CalibrationRequest(
        model=_absolute(model), settings=_for_measuring(settings), dtype=dtype, is_compiled=is_compiled, out=str(path),
        tensor_parallel_size=tensor_parallel_size,
    )  # fmt: skip
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


def _absolute(model: str) -> str:
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


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
    if not path.is_file():
        return False
    try:
        load_profile(path).require(key, remedy="remove it")
    except ProfileError as error:
        # Of another schema version, or damaged: the cache is ours to write again.
        logger.warning("measuring again, because the cached latency profile cannot be used: %s", error)
        return False
    return True


def _for_measuring(settings: Settings) -> dict[str, Any]:
    raw = settings.with_lookup("off").to_dict()
    raw["controller"] = {"rule": "never", "max_draft_tokens": settings.controller.max_draft_tokens}
    return raw


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
