"""Which steps passed, kept in the command's folder, so that a rerun goes on behind them."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from efficient_rollout.certificate import Machine
from efficient_rollout.errors import InputFileError
from efficient_rollout.files import read_text, written_whole

FILE = "state.json"
_REMEDY = "start over with --fresh"


class PassedStep(BaseModel):
    """Records a step that passed.

    Attributes:
        seconds: It took.
        measured: What it returned, JSON types.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    seconds: float
    measured: dict[str, Any]


class State(BaseModel):
    """Records what is known so far.

    Attributes:
        schema_version: Of this file.
        machine: Where the steps passed.
        steps: Those that passed, by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[1] = 1
    machine: Machine
    steps: dict[str, PassedStep] = {}

    def followed_by(self, name: str, passed: PassedStep) -> "State":
        """Return the state with one step more."""
        return self.model_copy(update={"steps": self.steps | {name: passed}})

    def write(self, folder: Path) -> None:
        """Write it whole, or not at all."""
        with written_whole(folder / FILE) as staged:
            staged.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_state(folder: Path) -> State | None:
    """Return what an earlier run in a folder left; None where there was none.

    Raises:
        InputFileError: The file cannot be read, or is of another kind.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return State.model_validate_json(read_text(path, what="the state of gpu-check", remedy=_REMEDY))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the file"
        raise InputFileError(f"{path} is no state of gpu-check: {where}: {fault['msg']}; {_REMEDY}") from error
