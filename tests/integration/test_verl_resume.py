"""A job that is interrupted, resumed twice by either command, and finished: one file, one timeline, one page."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl")

from interrupt_support import assert_interrupted, end, mapped_segments
from job_support import LOG_FILE, log_of, wait_until
from verl_arms import overrides_of
from verl_support import OURS, STOCK, start

from efficient_rollout.__main__ import main
from efficient_rollout.cleanup import descendants
from efficient_rollout.metrics.step_file import RUN_ID_FILE
from efficient_rollout.training_runs.run import read_run

pytestmark = [pytest.mark.verl, pytest.mark.slow]

SEEDED = (
    "+actor_rollout_ref.rollout.agent.agent_loop_manager_class=efficient_rollout.verl_plugin.seeded_loops.SeededManagerTQ",
    "trainer.v1.sampler.custom_sampler.name=OrderedReplayBuffer",
)
OPTIONS = (
    "data.train_batch_size=8",
    "actor_rollout_ref.rollout.n=2",
    "trainer.save_freq=2",
    "trainer.test_freq=-1",
    "trainer.resume_mode=auto",
    "trainer.logger=[console,wandb]",
)


def rows(directory: Path) -> list[dict[str, Any]]:
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def steps(directory: Path) -> list[int]:
    return [row["step"] for row in rows(directory) if "training/global_step" in row]


def newest_checkpoint(directory: Path) -> int:
    return int((directory / "latest_checkpointed_iteration.txt").read_text())


def interrupt(directory: Path, options: Sequence[str], command: Sequence[str], *, behind: int) -> int:
    """Run until a step behind this one is written that a checkpoint lacks, and end it; the newest checkpoint's step."""
    process = start([*options, "trainer.total_training_steps=500"], directory, command)

    def is_far_enough() -> bool:
        done = steps(directory)
        return process.poll() is not None or (bool(done) and done[-1] > behind and done[-1] % 2 == 1)

    try:
        wait_until(is_far_enough, seconds=400, what=f"a step behind {behind}")
        assert process.poll() is None, (directory / LOG_FILE).read_text(errors="replace")[-6000:]
        if command is OURS:
            assert_interrupted(process, directory, signal.SIGINT, 130)
        else:
            kill(process)
    finally:
        end(process)
    return newest_checkpoint(directory)


def kill(process: subprocess.Popen) -> None:
    """End a job of stock veRL's, which cleans up after itself as little as one on a machine that went down."""
    started = descendants(process.pid)
    segments = mapped_segments(started)
    for pid in (process.pid, *started):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    for segment in segments:
        segment.unlink(missing_ok=True)


def test_a_run_resumed_twice_is_one_run(tmp_path, capsys):
    options = [*overrides_of("drafting", tmp_path, use_v1=True), *OPTIONS]
    first = interrupt(tmp_path, options, OURS, behind=2)
    mark = (tmp_path / f"global_step_{first}" / RUN_ID_FILE).read_text()
    data = tmp_path / "data"
    files = (f"data.train_files={next(data.glob('train*'))}", f"data.val_files={next(data.glob('val*'))}")
    # The main door: stock veRL's own command.
    second = interrupt(tmp_path, [*options, *files, *SEEDED, *policy(tmp_path)], STOCK, behind=first + 2)
    assert second > first
    last = second + 3
    log_of(start([*options, f"trainer.total_training_steps={last}"], tmp_path), tmp_path)

    assert steps(tmp_path) == list(range(1, last + 1))
    found = rows(tmp_path)
    assert {row["run_id"] for row in found} == {mark}
    parts = {row["step"]: row["run_part"] for row in found if "training/global_step" in row}
    assert parts == {step: (step > first) + (step > second) for step in parts}
    # Each start validates the weights that it has.
    assert [row["step"] for row in found if "training/global_step" not in row] == [0, first, second]
    assert not list(tmp_path.glob("*.1.jsonl"))
    assert (tmp_path / f"global_step_{last}" / RUN_ID_FILE).read_text() == mark
    assert {path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")} == {mark}

    assert main(["report", str(tmp_path)]) == 0
    assert f"{last} steps, 1 to {last}" in (tmp_path / "report.html").read_text()
    run = read_run(tmp_path)
    assert run.resumed == [first + 1, second + 1]
    assert [note for note in run.notes if "resumed" not in note] == []
    assert {1, 2, last} <= run.timelines.keys()
    assert main(["summary", str(tmp_path)]) == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [int(word) for word in shown if word.isdecimal()] == list(range(1, last + 1))


def policy(directory: Path) -> list[str]:
    """What `efficient-rollout train` filled in, for stock veRL's command."""
    import yaml

    config = yaml.safe_load((directory / "config.yaml").read_text())
    return [
        f"actor_rollout_ref.model.path={config['actor_rollout_ref']['model']['path']}",
        f"reward.custom_reward_function.path={config['reward']['custom_reward_function']['path']}",
    ]
