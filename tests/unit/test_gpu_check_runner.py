"""Steps in processes of their own: what is remembered, what stops, and what is left behind."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from efficient_rollout.certificate import Machine
from efficient_rollout.errors import ConfigError, InputFileError
from efficient_rollout.gpu_check import runner
from efficient_rollout.gpu_check.steps import Step, measured_path

HERE = Machine(gpu="A", capability="9.0", driver="1", packages={"vllm": "0.31.0"}, sources="abc")
STEPS = tuple(Step(name, "", 60.0) for name in ("first", "second", "third"))
PASSES = "import json, sys; open(sys.argv[1], 'w').write(json.dumps({'count': 1})); print('all is well')"


class Fakes:
    """Commands of steps: each passes unless it is told otherwise; keeps which ran."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scripts, self.ran = folder, {}, []

    def __call__(self, step: Step) -> list[str]:
        self.ran.append(step.name)
        script = self.scripts.get(step.name, PASSES)
        return [sys.executable, "-S", "-c", script, str(measured_path(self.folder, step.name))]


@pytest.fixture
def fakes(tmp_path):
    return Fakes(tmp_path)


def run(fakes, steps=STEPS, machine=HERE, *, fresh=False):
    told = []
    begun = runner.starting_state(fakes.folder, machine, told.append, fresh=fresh)
    fakes.ran.clear()
    return runner.run_steps(steps, fakes.folder, begun, fakes, told.append), told


def test_steps_run_in_their_order_and_are_remembered(fakes):
    outcomes, told = run(fakes)
    assert fakes.ran == ["first", "second", "third"]
    assert [outcome.measured for outcome in outcomes] == [{"count": 1}] * 3
    assert (fakes.folder / "first.log").read_text() == "all is well\n"
    assert "second: passed after" in "\n".join(told)
    assert list(runner.read_state(fakes.folder).steps) == fakes.ran


def test_a_rerun_goes_on_behind_what_passed(fakes):
    fakes.scripts["second"] = "raise SystemExit('something is wrong')"
    outcomes, _ = run(fakes)
    assert fakes.ran == ["first", "second"]
    assert outcomes[1].problem == "its process ended with exit code 1"
    assert runner.last_lines(outcomes[1].log) == ["something is wrong"]
    del fakes.scripts["second"]
    outcomes, _ = run(fakes)
    assert fakes.ran == ["second", "third"]
    assert [outcome.is_old for outcome in outcomes] == [True, False, False]


@pytest.mark.parametrize(("machine", "fresh"), [(HERE.model_copy(update={"driver": "2"}), False), (HERE, True)])
def test_another_machine_and_fresh_start_over(fakes, machine, fresh):
    run(fakes)
    _, told = run(fakes, machine=machine, fresh=fresh)
    assert fakes.ran == ["first", "second", "third"]
    assert fresh or "driver is 2 here, and 1 there" in told[0]


def test_a_step_that_ends_well_without_a_result_has_failed(fakes):
    run(fakes)
    fakes.scripts["first"] = "pass"
    outcomes, _ = run(fakes, fresh=True)
    assert "cannot read a step's result" in outcomes[0].problem


def test_a_process_that_crashes_ends_its_step_alone(fakes):
    fakes.scripts["first"] = "import os; os.abort()"
    outcomes, _ = run(fakes)
    assert outcomes[0].problem == "its process was ended by signal 6"
    assert len(outcomes) == 1


def runs(pid: int) -> bool:
    """Whether a process is there, and not just waiting for somebody to take note of its end."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# A process that heeds no request to end, in a session of its own, as compilers' workers are.
STUBBORN = """
import signal, subprocess, sys, time
inner = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
child = subprocess.Popen([sys.executable, "-S", "-c", inner], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(99)
"""


def test_what_hangs_is_ended_with_all_it_started(fakes, monkeypatch):
    monkeypatch.setattr("efficient_rollout.cleanup._GRACE_SECONDS", 0.5)
    fakes.scripts["first"] = STUBBORN
    outcomes, _ = run(fakes, steps=(Step("first", "", 5.0), *STEPS[1:]))
    assert outcomes[0].problem == "it was ended after its limit of 5 s"
    assert not runs(int((fakes.folder / "first.log").read_text()))
    assert fakes.ran == ["first"]


# A shell's background job has SIGINT ignored, and so has all that it starts.
WHOLE = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
from efficient_rollout.cleanup import exit_code_of
sys.path.insert(0, {here!r})
from test_gpu_check_runner import HERE, STUBBORN, Fakes, run
def job():
    fakes = Fakes(Path({folder!r}))
    fakes.scripts["first"] = STUBBORN
    run(fakes)
raise SystemExit(exit_code_of("gpu-check", job))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_no_process_and_no_state(tmp_path, number, code):
    script = WHOLE.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    command = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "first.log", time.monotonic() + 120
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        assert command.poll() is None
        time.sleep(0.1)
    command.send_signal(number)
    _, errors = command.communicate(timeout=60)
    assert command.returncode == code
    assert "every process of the run has ended" in errors
    assert not runs(int(log.read_text()))
    assert runner.read_state(tmp_path) is None


def test_two_at_once_in_a_folder_are_refused(tmp_path):
    refused = pytest.raises(ConfigError, match="another gpu-check is running")
    with runner.locked(tmp_path / "new"), refused, runner.locked(tmp_path / "new"):
        pass
    with runner.locked(tmp_path / "new"):
        pass


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written to.*choose another"), runner.locked(tmp_path / "file"):
        pass


def test_a_full_disk_is_said(fakes, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("efficient_rollout.certificate.written_whole", full)
    with pytest.raises(runner.DiskError, match=r"step first cannot be recorded.*No space left.*Make room"):
        run(fakes)


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 7}'])
def test_a_state_that_is_none_is_refused(fakes, text):
    (fakes.folder / runner.STATE).write_text(text)
    with pytest.raises(InputFileError, match="--fresh"):
        run(fakes)


def test_the_end_of_a_long_log_is_short(tmp_path):
    log = tmp_path / "log"
    log.write_text("\n".join(f"{number} {'x' * 1000}\n" for number in range(200)))
    lines = runner.last_lines(log)
    assert len(lines) == 12
    assert lines[-1].startswith("199 ")
    assert max(map(len, lines)) == 300
