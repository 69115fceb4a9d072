"""Run the steps, each in a process of its own with a limit of time, up to the first that fails.

Which steps passed is kept in the command's folder, so that a rerun goes on behind them.
"""

import fcntl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from efficient_rollout.certificate import JsonFile, Machine
from efficient_rollout.cleanup import descendants, end_processes, nothing_left_behind
from efficient_rollout.errors import ConfigError, EfficientRolloutError, InputFileError
from efficient_rollout.files import read_json
from efficient_rollout.gpu_check.stand import Measured
from efficient_rollout.gpu_check.steps import Step, measured_path

LOCK, STATE = "lock", "state.json"
_LAST_LINES = 12
_LINE_CHARACTERS = 300
_TAIL_BYTES = 1 << 16


class DiskError(EfficientRolloutError):
    """Says that the command's folder takes no more."""


class Outcome(BaseModel):
    """Says what became of a step."""

    model_config = ConfigDict(extra="forbid")
    name: str
    certifies: bool
    log: Path  # its output
    seconds: float  # it took
    measured: Measured | None = None  # what it returned; None where it failed
    problem: str | None = None  # why it failed; None where it passed
    is_old: bool = False  # it passed in an earlier run


class State(JsonFile):
    """Records what is known so far."""

    schema_version: Literal[2] = 2
    machine: Machine  # where the steps passed
    steps: dict[str, Outcome]  # those that passed, by name


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder for this process alone; make it where it is not there.

    Raises:
        ConfigError: It cannot be written to, or another check is running in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise ConfigError(f"--out {folder} cannot be written to ({error.strerror}): choose another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another gpu-check is running in {folder}: wait for it, or choose another --out"
            ) from None
        yield


@contextmanager
def disk_errors(what: str, folder: Path) -> Iterator[None]:
    """Raise DiskError, with the way out, where a folder takes no more in the block."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{what} cannot be recorded in {folder}: {error.strerror}. Make room there, or choose another folder, and "
            "run the command again: it goes on behind the last step that was recorded"
        ) from error


def read_state(folder: Path) -> State | None:
    """Return what an earlier run in a folder left; None where there was none.

    Raises:
        InputFileError: The file cannot be read, or is of another kind.
    """
    path = folder / STATE
    return State.read(path, what="state of gpu-check", remedy="start over with --fresh") if path.exists() else None


def starting_state(folder: Path, machine: Machine, say: Callable[[str], None], *, fresh: bool) -> State:
    """Return what counts of an earlier run: what it proved, if on this machine.

    Raises:
        InputFileError: Its file is no such file.
    """
    state = None if fresh else read_state(folder)
    differences = [] if state is None else machine.differences(state.machine)
    if differences:
        say(f"starting over, {folder} is of another machine: {'; '.join(differences)}")
    return State(machine=machine, steps={}) if state is None or differences else state


def run_steps(
    steps: Sequence[Step],
    folder: Path,
    state: State,
    command: Callable[[Step], list[str]],
    say: Callable[[str], None],
) -> list[Outcome]:
    """Run what has not passed yet, up to the first that fails, and return what became of each.

    Args:
        steps: In their order.
        folder: Of logs, results and the state.
        state: From `starting_state`.
        command: Returns what starts a step's process, which writes `measured_path` and ends with 0.
        say: Told of each step.

    Raises:
        DiskError: The folder takes no more.
    """
    outcomes: list[Outcome] = []
    with nothing_left_behind():
        for step in steps:
            passed, log = state.steps.get(step.name), folder / f"{step.name}.log"
            if passed is not None:
                say(f"{step.name}: passed before")
                outcomes.append(passed.model_copy(update={"is_old": True}))
                continue
            say(f"{step.name}: running, for {step.limit_s:g} s at most; {log}")
            with disk_errors(f"step {step.name}", folder):
                outcome = _run(step, folder, log, command(step))
                if outcome.problem is None:
                    state = State(machine=state.machine, steps=state.steps | {step.name: outcome})
                    state.write(folder / STATE)
            outcomes.append(outcome)
            say(f"{step.name}: {'passed' if outcome.problem is None else 'FAILED'} after {outcome.seconds:.1f} s")
            if outcome.problem is not None:
                break
    return outcomes


def _run(step: Step, folder: Path, log: Path, command: list[str]) -> Outcome:
    result, started = measured_path(folder, step.name), time.monotonic()
    result.unlink(missing_ok=True)
    with log.open("wb") as output:
        code = _wait_for(command, output.fileno(), step.limit_s)
    measured, problem, seconds = None, None, time.monotonic() - started
    if code is None:
        problem = f"it was ended after its limit of {step.limit_s:g} s"
    elif code != 0:
        problem = f"its process was ended by signal {-code}" if code < 0 else f"its process ended with exit code {code}"
    else:
        try:
            measured = read_json(result, what="a step's result")
        except InputFileError as error:
            problem = str(error)
    return Outcome(
        name=step.name, certifies=step.certifies, log=log, seconds=seconds, measured=measured, problem=problem
    )


def _wait_for(command: list[str], output: int, limit_s: float) -> int | None:
    """Return the exit code of a process; None where its time was up.

    It leaves no process behind, however this ends.
    """
    before = set(descendants())
    # In a session of its own Ctrl-C in a terminal does not reach it: it is ended here, with all it started.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        end_processes(lambda: [pid for pid in descendants() if pid not in before])
        process.poll()


def last_lines(log: Path) -> list[str]:
    """Return the end of a log, without empty lines."""
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return [line[:_LINE_CHARACTERS] for line in lines if line.strip()][-_LAST_LINES:]
