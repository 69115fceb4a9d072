"""Every command on a page is one that this package takes: its options exist, and their values are of their kinds."""

import argparse
import functools
import re
from collections import Counter

import pytest
from page_commands import PAGES, REPOSITORY, Command, commands_in, commands_of, commands_of_text

from efficient_rollout import serve
from efficient_rollout.__main__ import COMMANDS, command_parser
from efficient_rollout.errors import ConfigError
from efficient_rollout.openrlhf_plugin import options

EVERY_COMMAND = [command for page in PAGES for command in commands_of(page)]
# Words of a page that stand for any option of a group, which hydra looks for by its name. Several nodes are for recipes
# on GPUs, whose controller takes a profile.
PLACEHOLDERS = {"recipe=NAME": "recipe=grpo_qwen3_8b_gsm8k_math", "controller=ARM": "controller=always"}
SCRIPT = re.compile(r"\bbash (scripts/[\w./-]+)")
MAX_ID_LENGTH = 100


def take(command: Command) -> None:
    """Parse it, and start nothing.

    Raises:
        SystemExit: argparse refuses it, or it asks for help.
        ConfigError: hydra, or a setting, refuses it.
    """
    name, *rest = command.arguments
    parser = command_parser(command.arguments)
    if not command.is_whole:
        require_nothing(parser)
    parser.parse_args(command.arguments)
    if not rest and not command.is_whole:
        return
    if name == "train":
        pytest.importorskip("verl")
        compose(tuple(PLACEHOLDERS.get(argument, argument) for argument in rest))
    elif name == "openrlhf":
        options.parse_options(rest if command.is_whole or "--" in rest else [*rest, "--"])
    elif name == "serve":
        serve.parse(rest)


@functools.cache
def compose(arguments: tuple[str, ...]) -> None:
    """Compose a veRL job, or several; models and files need not exist. Each takes a second, and pages repeat others."""
    from efficient_rollout.verl_plugin.compose import job_hydra
    from efficient_rollout.verl_plugin.multirun import jobs_of
    from efficient_rollout.verl_plugin.train_options import parse_options

    options = parse_options(arguments)
    jobs = jobs_of(options.overrides, job_hydra())
    assert options.multirun or len(jobs) == 1


def require_nothing(parser: argparse.ArgumentParser) -> None:
    """Take a command of which a part is left out; argparse would name what is missing before what is unknown."""
    for group in parser._mutually_exclusive_groups:
        group.required = False
    for action in parser._actions:
        action.required = False
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                require_nothing(inner)


@pytest.fixture(autouse=True)
def _of_no_machine(monkeypatch) -> None:
    # A page's file of settings is the reader's; and a cluster that runs here would be joined.
    monkeypatch.setattr(options, "_read", lambda _path: {})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=lambda command: str(command)[:MAX_ID_LENGTH])
def test_it_parses(command, capsys):
    try:
        take(command)
    except SystemExit as end:
        if end.code != 0:
            pytest.fail(capsys.readouterr().err)
    except ConfigError as error:
        pytest.fail(str(error))


def test_no_command_is_overlooked():
    named = Counter(command.arguments[0] for command in EVERY_COMMAND)
    whole = Counter(command.arguments[0] for command in EVERY_COMMAND if command.is_whole)
    benches = Counter(command.arguments[1] for command in EVERY_COMMAND if command.arguments[0] == "bench")
    assert {name for name in COMMANDS if whole[name] == 0} == {"explain"}
    assert whole["train"] >= 20
    assert whole["report"] >= 8
    assert named["openrlhf"] >= 5
    assert min(benches[name] for name in ("rollout", "drafter", "kernels")) >= 2
    assert named.total() - whole.total() >= 20, "in sentences, or with something left out"
    words = {word for command in EVERY_COMMAND for word in command.arguments}
    assert PLACEHOLDERS.keys() - words == set(), "on no page any more: take it off the list"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_scripts_exist(page):
    scripts = SCRIPT.findall(page.read_text(encoding="utf-8"))
    assert [script for script in scripts if not (REPOSITORY / script).is_file()] == []


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("```bash\nA=1 .venv/bin/efficient-rollout train \\\n  a=1 'b=c d'  # why\n```\n", [("train", "a=1", "b=c d")]),
        ("# What\n    efficient-rollout policy\n\n    nothing\n", [("policy",)]),
        ("so:\n\n    efficient-rollout data --out x 2>&1 | tail\n\n    nothing\n", [("data", "--out", "x")]),
        ('```\nsrun -n 1 efficient-rollout train n=$N "$@" >log\n```\n', [("train", "n=1")]),
        ("```\npython3 -m efficient_rollout doctor && efficient-rollout explain\n```\n", [("doctor",), ("explain",)]),
        ("```diff\n-x \\\n+efficient-rollout openrlhf -- \\\n   --a b \\\n```\n", [("openrlhf", "--", "--a", "b")]),
        ("see `efficient-rollout bench\nrollout ... --x` there", [("bench", "rollout", "--x")]),
        ("`python -m efficient_rollout.openrlhf_plugin -- ...`", [("openrlhf", "--")]),
        ("pip install efficient-rollout, or\n\n    pip install efficient-rollout\n", []),
    ],
)
def test_what_is_a_command(text, commands):
    assert [command.arguments for command in commands_of_text("page.md", text)] == commands


@pytest.mark.parametrize(
    "line",
    [
        "efficient-rollout tune",
        "efficient-rollout summary",
        "efficient-rollout summary DIR --agains PLAIN --x",
        "efficient-rollout calibrate --model DIR --out FILE --max-points N",
        "efficient-rollout train trainer.total_training_step=5",
        "efficient-rollout train recipe=no_such",
        "efficient-rollout train actor_rollout_ref.rollout.custom.efficient_rollout.drafter.schema=int8",
        "efficient-rollout openrlhf ARGUMENTS",
        "efficient-rollout serve MODEL --port 1",
        "efficient-rollout serve MODEL drafter.schema=int8 -- --port 1",
        "efficient-rollout openrlhf --efficient_rollout.drafter.schema=int8 -- ARGUMENTS",
    ],
)
def test_the_check_sees(line):
    with pytest.raises((SystemExit, ConfigError)) as caught:
        take(Command("", *commands_in(line), is_whole=True))
    assert getattr(caught.value, "code", 2) == 2


def test_the_check_sees_an_option_in_a_sentence():
    take(Command("", ("bench", "rollout", "--json", "FILE"), is_whole=False))
    with pytest.raises(SystemExit):
        take(Command("", ("bench", "rollout", "--jsonl", "FILE"), is_whole=False))
