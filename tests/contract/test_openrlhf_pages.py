"""OpenRLHF's options that docs/openrlhf.md and the quickstart name are OpenRLHF's."""

import argparse
import re
import runpy
from typing import NoReturn

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF has an environment of its own: bash scripts/install.sh --openrlhf")

from efficient_rollout.openrlhf_plugin import stand_ins  # noqa: F401 - what this machine lacks
from efficient_rollout.openrlhf_plugin.main import ENTRY_POINT

NAMED = re.compile(r"(?<![\w-])--(?:[a-z]+\.)+\w+")
OURS = ("--cpu.", "--efficient_rollout.")


class _EndOfParsing(Exception):
    """In the place of the job."""


@pytest.fixture(scope="module")
def taken() -> set[str]:
    """OpenRLHF makes its parser where the job starts: its entry point up to there."""
    parsers = []

    def parse_args(parser: argparse.ArgumentParser) -> NoReturn:
        parsers.append(parser)
        raise _EndOfParsing

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(_EndOfParsing):
            runpy.run_module(ENTRY_POINT, run_name="__main__", alter_sys=True)
    return set(parsers[0]._option_string_actions)


@pytest.mark.parametrize("name", ["docs/openrlhf.md", "scripts/quickstart_openrlhf.sh"])
def test_options_exist(name, taken, repository):
    options = set(NAMED.findall((repository / name).read_text(encoding="utf-8")))
    theirs = {option for option in options if not option.startswith(OURS)}
    assert len(theirs) > 10
    assert theirs - taken == set()
