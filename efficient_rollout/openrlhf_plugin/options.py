"""This package's options of an OpenRLHF job, before the `--` that OpenRLHF's own stand behind."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from efficient_rollout.config import CONFIG_KEY, Settings
from efficient_rollout.errors import ConfigError, InputFileError

PROGRAM = "efficient-rollout openrlhf"
_USAGE = f"{PROGRAM} [settings] -- OPENRLHF_ARGUMENTS"
_PREFIX = f"--{CONFIG_KEY}."


@dataclass(frozen=True, slots=True)
class Options:
    """Holds what stood on the command line: OpenRLHF's own arguments untouched, and which are for a CPU alone."""

    settings: Settings
    openrlhf: tuple[str, ...]
    param_dtype: str
    kv_cache_bytes: int
    cpu_given: tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; usage: {_USAGE}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        usage=_USAGE,
        description="Train with OpenRLHF, its rollouts drafted by the policy itself. OPENRLHF_ARGUMENTS are those of "
        "`python -m openrlhf.cli.train_ppo_ray`.",
        epilog=f"Every setting is an option, for example {_PREFIX}drafter.scheme=int4, or "
        f"{_PREFIX}enabled=false for the baseline: OpenRLHF with plain vLLM. It wins over the file's.",
        allow_abbrev=False,
    )
    parser.add_argument(f"--{CONFIG_KEY}", dest="file", type=Path, metavar="FILE", help="settings, as yaml")
    cpu = parser.add_argument_group("without a GPU")
    cpu.add_argument(
        "--cpu.param_dtype",
        dest="param_dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="of trainer and engine; bfloat16 unless said otherwise",
    )
    cpu.add_argument(
        "--cpu.kv_cache_bytes",
        dest="kv_cache_bytes",
        type=_positive,
        metavar="BYTES",
        default=1 << 30,
        help="of each engine; 1 GiB unless said otherwise",
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise ValueError(text)
    return value


def parse_options(argv: Sequence[str]) -> Options:
    """Split the command line, and validate this package's part of it.

    Raises:
        ConfigError: There is no `--`, or an option or setting is unknown or invalid.
        InputFileError: The settings' file is missing or no yaml mapping.
        SystemExit: Help was asked for.
    """
    ours, theirs = _split(argv)
    dotted = [argument.removeprefix(_PREFIX) for argument in ours if argument.startswith(_PREFIX)]
    if malformed := [item for item in dotted if "=" not in item]:
        raise ConfigError(f"{_PREFIX}{malformed[0]} has no value: write {_PREFIX}{malformed[0]}=VALUE")
    parsed = _parser().parse_args([argument for argument in ours if not argument.startswith(_PREFIX)])
    try:
        tree = OmegaConf.merge(_read(parsed.file), OmegaConf.from_dotlist(dotted))
        raw: Any = OmegaConf.to_container(tree, resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"the settings cannot be read: {_told(error)}") from error
    settings = Settings.parse(raw, where=_PREFIX.rstrip(".")).for_training()
    given = tuple(argument.partition("=")[0] for argument in ours if argument.startswith("--cpu."))
    return Options(settings, tuple(theirs), parsed.param_dtype, parsed.kv_cache_bytes, given)


def _split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    if "--" in argv:
        position = argv.index("--")
        return argv[:position], argv[position + 1 :]
    if {"-h", "--help"} & set(argv):
        return ["--help"], []
    raise ConfigError(f"OpenRLHF's arguments stand behind `--`: {_USAGE}")


def _read(path: Path | None) -> Any:
    if path is None:
        return {}
    try:
        tree = OmegaConf.load(path)
    except OSError as error:
        raise InputFileError(f"--{CONFIG_KEY}: cannot read {path}: {error.strerror}") from error
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise InputFileError(f"--{CONFIG_KEY}: {path} is not yaml: {_told(error)}") from error
    if not OmegaConf.is_dict(tree):
        raise InputFileError(f"--{CONFIG_KEY}: {path} holds a list; settings are a mapping")
    return tree


def _told(error: Exception) -> str:
    """Return what is wrong, without yaml's excerpt of what it read: half a secret cannot be told from a word."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    return f"{error.problem}, line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
