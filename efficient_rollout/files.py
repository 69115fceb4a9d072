"""Files read with an error that says what to do, and written whole."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efficient_rollout.errors import EfficientRolloutError, InputFileError


def read_text(
    path: Path, *, what: str, remedy: str = "check the path", error: type[EfficientRolloutError] = InputFileError
) -> str:
    """Return a file's text.

    Args:
        path: The file.
        what: It is, for the message: "the trace".
        remedy: What to do where it cannot be read.
        error: Raised then.

    Raises:
        InputFileError: It is missing or unreadable, or not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as fault:
        raise error(f"cannot read {what} {path}: {fault.strerror}; {remedy}") from fault
    except UnicodeDecodeError as fault:
        raise error(f"cannot read {what} {path}: it is not text ({fault}); {remedy}") from fault


def read_json(
    path: Path, *, what: str, remedy: str = "check the path", error: type[EfficientRolloutError] = InputFileError
) -> Any:
    """Return a JSON file's content; arguments and errors are those of `read_text`, `error` also where it is no JSON."""
    try:
        return json.loads(read_text(path, what=what, remedy=remedy, error=error))
    except json.JSONDecodeError as fault:
        raise error(f"{path} is not JSON ({fault}); {remedy}") from fault


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield where to write a file that takes the place of `path` when the block ends; dropped where the block raises.

    A reader, and another process that writes the same file, sees the old one or the whole new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        staged = Path(folder) / path.name
        yield staged
        with staged.open("rb") as file:
            os.fsync(file.fileno())
        staged.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON, whole or not at all."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    with written_whole(path) as staged:
        staged.write_text(text, encoding="utf-8")


def require_in_python(path: Path, name: str, *, option: str) -> None:
    """Raise unless a Python file, which is compiled and not run, has a name at its top.

    Args:
        path: The file.
        name: The name.
        option: That names the file, for the message.

    Raises:
        InputFileError: It is missing, is not readable as Python, or has no such name.
    """
    if path.suffix != ".py" or not path.is_file():
        raise InputFileError(f"{option}: {path} does not exist or is no Python file")
    try:
        names = compile(path.read_text(encoding="utf-8"), str(path), "exec").co_names
    except (OSError, SyntaxError, ValueError) as error:
        raise InputFileError(f"{option}: {path} is not readable as Python: {error}") from error
    if name not in names:
        raise InputFileError(f"{option}: {path} defines no {name!r}")
