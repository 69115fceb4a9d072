"""Which run a step belongs to: an id that a run's checkpoints keep, so that what resumes from one goes on with it."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# In the folder of each checkpoint.
RUN_ID_FILE = "efficient_rollout_run_id"
_WANDB_RUN_ID, _WANDB_RESUME = "WANDB_RUN_ID", "WANDB_RESUME"


def new_run_id() -> str:
    """Return an id that no other run has, fit for wandb: 16 hexadecimal digits."""
    return uuid.uuid4().hex[:16]


def mark_checkpoint(folder: Path, run_id: str) -> None:
    """Keep the run's id with a checkpoint that was just saved; nothing where the folder lies on no disk of this one."""
    if folder.is_dir():
        (folder / RUN_ID_FILE).write_text(run_id, encoding="utf-8")


def run_id_of(folder: Path) -> str | None:
    """Return the id of the run that saved this checkpoint; None where the checkpoint holds none."""
    path = folder / RUN_ID_FILE
    return (path.read_text(encoding="utf-8").strip() or None) if path.is_file() else None


@contextmanager
def one_wandb_run(run_id: str) -> Iterator[None]:
    """Make `wandb.init` go on with the run of this id, or begin it, unless the user names a run to wandb himself.

    Both frameworks call `wandb.init` themselves, and pass no id: wandb's own variables are the one way to give it one.
    """
    if _WANDB_RUN_ID in os.environ or _WANDB_RESUME in os.environ:
        yield
        return
    os.environ.update({_WANDB_RUN_ID: run_id, _WANDB_RESUME: "allow"})
    try:
        yield
    finally:
        del os.environ[_WANDB_RUN_ID], os.environ[_WANDB_RESUME]
