"""The command line: which command runs, and how a fault ends."""

import os
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from efficient_rollout import __main__ as command_line
from efficient_rollout import __version__
from efficient_rollout.errors import ConfigError


@pytest.fixture
def train_with(monkeypatch) -> Callable[[Callable[[list[str]], int]], None]:
    """Puts a function in the place of veRL's entry."""

    def replace(train: Callable[[list[str]], int]) -> None:
        module = ModuleType("efficient_rollout.verl_plugin.main")
        module.train = train  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return replace


@pytest.mark.parametrize(
    "overrides", [[], ["--cfg", "job", "size=small", "+trainer.x=1", "~data.y", "actor.path='a b'", "--help"]]
)
def test_train_hands_every_argument_to_hydra(train_with, overrides):
    calls: list[Any] = []
    train_with(lambda argv: calls.append(list(argv)) or 7)
    assert command_line.main(["train", *overrides]) == 7
    assert calls == [overrides]


def raising(fault: BaseException) -> Callable[[list[str]], int]:
    """A command that ends so."""

    def fail(_argv: list[str]) -> int:
        raise fault

    return fail


@pytest.mark.parametrize(
    ("fault", "exit_code", "text"),
    [
        (ConfigError("k=99 is out of range"), 2, "efficient-rollout: error: k=99 is out of range\n"),
        (KeyboardInterrupt(), 130, "efficient-rollout: interrupted\n"),
    ],
)
def test_fault_is_one_message_and_an_exit_code(fault, exit_code, text, train_with, capsys):
    train_with(raising(fault))
    assert command_line.main(["train"]) == exit_code
    assert capsys.readouterr() == ("", text)


def test_a_bug_is_not_dressed_up_as_bad_input(train_with):
    train_with(raising(AssertionError("ours")))
    with pytest.raises(AssertionError, match="ours"):
        command_line.main(["train"])


def test_sigterm_lets_a_command_end_what_it_started(train_with):
    ended = []

    def train(_argv: list[str]) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            ended.append(True)
        return 0

    train_with(train)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_:
        command_line.main(["train"])
    assert (exit_.value.code, ended, signal.getsignal(signal.SIGTERM)) == (143, [True], before)


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"efficient-rollout {__version__}\n"


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.main(["--help"])
    assert caught.value.code == 0
    listed = capsys.readouterr().out
    assert all(f" {name}" in listed and summary for name, (summary, _) in command_line.COMMANDS.items())


@pytest.mark.parametrize("arguments", [[], ["tune"], ["--unknown"]])
def test_unknown_command_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.main(arguments)
    assert caught.value.code == 2
    assert "usage: efficient-rollout" in capsys.readouterr().err


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_every_command_explains_itself(name, capsys):
    if name == "train":
        pytest.importorskip("hydra")
    try:
        code = command_line.main([name, "--help"])
    except SystemExit as end:
        code = end.code
    assert code == 0
    assert f"usage: efficient-rollout {name}" in capsys.readouterr().out
