"""What `efficient-rollout serve` makes of its command line, and what it ends with."""

import signal
import sys
from typing import Any

import pytest

from efficient_rollout import serve
from efficient_rollout.__main__ import main
from efficient_rollout.config import Settings


def test_settings_stand_before_the_dashes_and_vllm_s_options_behind():
    ours = "drafter.scheme=int4 drafter.group_size=32 controller.max_draft_tokens=6 enabled=false"
    model, settings, options = serve.parse(["M", *ours.split(), "--", "--port", "1", "--x=a"])
    drafter, controller = {"scheme": "int4", "group_size": 32}, {"max_draft_tokens": 6}
    expected = {"enabled": False, "drafter": drafter, "controller": controller}
    assert (model, settings) == ("M", Settings.parse(expected))
    assert options == ["--port", "1", "--x=a"]
    assert serve.parse(["M"]) == ("M", Settings(), [])
    assert serve.parse(["M", "--", "--a", "--", "b"])[2] == ["--a", "--", "b"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "required: MODEL"),
        (["--", "--port", "1"], "required: MODEL"),
        (["M", "--port", "1"], "unrecognized arguments: --port"),
        (["M", "drafter"], "drafter has no value: write drafter=VALUE"),
        (["M", "drafter.schema=int4"], "drafter.schema: unknown setting; legal here: scheme"),
        (["M", "controller.max_draft_tokens=99"], "less than or equal to 16, got 99"),
        (["M", "enabled=false", "enabled=true"], "enabled is given twice"),
        (["M", "drafter=int4", "drafter.scheme=int4"], "drafter.scheme is given twice"),
        (["M", "drafter.scheme=int4", "drafter=int4"], "drafter is given twice"),
    ],
)
def test_bad_input_is_told_before_anything_starts(arguments, told, monkeypatch, capsys):
    monkeypatch.setattr(serve.subprocess, "Popen", None)
    try:
        assert main(["serve", *arguments]) == 2
    except SystemExit as end:
        assert end.code == 2  # noqa: PT017 - argparse ends so, the settings do not
    message = capsys.readouterr().err
    assert told in message
    assert "serve: error: " in message


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("import sys; sys.exit(0)", 0),
        ("import sys; sys.exit(2)", 2),
        ("import sys; sys.exit(1)", 1),
        ("import os; os.kill(os.getpid(), 9)", 137),
        # As a terminal's Ctrl-C reaches the command; the server is in a session of its own, and is told.
        ("import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)", 130),
        ("import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)", 143),
    ],
)
def test_the_exit_code_is_the_server_s_or_the_signal_s(script, code, monkeypatch):
    stock = serve.subprocess.Popen

    def popen(command: list[str], **given: Any) -> Any:
        assert command[1:4] == ["-m", "efficient_rollout.engine.server", "M"]
        return stock([sys.executable, "-c", script], **given)

    monkeypatch.setattr(serve.subprocess, "Popen", popen)
    # In a shell's background job it is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["serve", "M"]) == code
    finally:
        signal.signal(signal.SIGINT, before)
