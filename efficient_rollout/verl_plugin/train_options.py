"""Arguments of `efficient-rollout train`: those of hydra's flags that mean something here, and overrides."""

import argparse
import contextlib
import io
import textwrap
from collections.abc import Sequence

from hydra._internal.hydra import Hydra
from omegaconf import OmegaConf

from efficient_rollout.errors import ConfigError
from efficient_rollout.secrets import DiscreetParser, text_without_secrets
from efficient_rollout.verl_plugin.compose import (
    CONFIG_NAME,
    compose_config,
    config_dir,
    groups,
    told_plainly,
)

_PROGRAM = "efficient-rollout train"
_WIDTH = 110
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
# hydra's flags that a job has no use for.
_MEANINGLESS = (
    ("-cn", "--config-name"), ("-cp", "--config-path"), ("-sc", "--shell-completion"), ("--hydra-help",),
    ("--version",),
)  # fmt: skip
_DESCRIPTION = """\
Train with veRL. Every veRL option is an override: key=value; +key=value where veRL lists no such key; ~key takes one
out. This package's own stand under actor_rollout_ref.rollout.custom.efficient_rollout.

groups, of which group=option chooses (* where nothing else is chosen):
"""
_EXAMPLES = f"""\
examples:
  {_PROGRAM} size=small controller=always trainer.total_training_steps=5
  {_PROGRAM} --cfg job --package trainer recipe=grpo_quickstart
  {_PROGRAM} --multirun recipe=grpo_quickstart efficient_rollout=off,threshold
"""


def _parser(description: str = "") -> DiscreetParser:
    parser = DiscreetParser(
        _PROGRAM,
        "%(prog)s [flags] [key=value ...]; --help lists the flags and the groups",
        description,
        _EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=22, width=_WIDTH),
        add_help=False,
    )
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    flags = parser.add_argument_group("flags")
    flags.add_argument("-h", "--help", action="store_true", help="show this and exit")
    which = "show the composed configuration instead of running it"
    flags.add_argument("-c", "--cfg", choices=["job", "hydra", "all"], help=which)
    flags.add_argument("--resolve", action="store_true", help="with --cfg, every reference followed")
    part = "with --cfg, the part to show, as in trainer or actor_rollout_ref.rollout"
    flags.add_argument("-p", "--package", metavar="KEY", help=part)
    info = f"show what hydra found: {', '.join(_INFO)}"
    flags.add_argument("-i", "--info", metavar="WHAT", nargs="?", const="all", choices=_INFO, help=info)
    each = "run a job for each combination of listed values (key=a,b), one after the other, in a process each"
    flags.add_argument("-m", "--multirun", action="store_true", help=each)
    own = "a folder of your own, whose groups add to these: DIR/recipe/mine.yaml is recipe=mine"
    flags.add_argument("-cd", "--config-dir", metavar="DIR", help=own)
    flags.add_argument("-r", "--run", action="store_true", help="run a job, as without any flag")
    for names in _MEANINGLESS:
        flags.add_argument(*names, nargs="?", const=True, help=argparse.SUPPRESS)
    return parser


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; flags may stand between overrides.

    Raises:
        ConfigError: Flags exclude each other, or one has no meaning here.
        SystemExit: A flag is unknown.
    """
    options = _parser().parse_intermixed_args(list(argv))
    for *_, flag in _MEANINGLESS:
        if vars(options)[flag.strip("-").replace("-", "_")]:
            raise ConfigError(f"{flag} has no meaning here: {_PROGRAM} runs its own job")
    if len(both := [f"--{name}" for name in ("run", "multirun", "cfg", "info") if vars(options)[name]]) > 1:
        raise ConfigError(f"only one of {', '.join(both)} can be given")
    for name in ("resolve", "package"):
        if vars(options)[name] and not options.cfg:
            raise ConfigError(f"--{name} goes with --cfg")
    return options


def show(options: argparse.Namespace, hydra: Hydra) -> str | None:
    """Return what the flags ask for in the place of a job; None where a job is to run.

    Raises:
        ConfigError: An override names nothing, or cannot be resolved.
    """
    if options.help:
        return _parser(_DESCRIPTION + _groups(hydra)).format_help()
    printed = io.StringIO()
    if options.cfg in ("hydra", "all"):
        with told_plainly(hydra), contextlib.redirect_stdout(printed):
            hydra.show_cfg(CONFIG_NAME, options.overrides, options.cfg, options.package, options.resolve)
    elif options.cfg:
        found = compose_config(options.overrides, hydra)
        if options.package not in (None, "_global_"):
            found = OmegaConf.select(found, options.package)
            if found is None:
                raise ConfigError(f"--package: {options.package} is not in the configuration, or not set there")
        printed.write(OmegaConf.to_yaml(found, resolve=options.resolve) if OmegaConf.is_config(found) else f"{found}\n")
    elif options.info:
        with told_plainly(hydra), contextlib.redirect_stdout(printed):
            hydra.show_info(options.info, CONFIG_NAME, options.overrides)
    else:
        return None
    return text_without_secrets(printed.getvalue())


def _groups(hydra: Hydra) -> str:
    listed = OmegaConf.load(config_dir() / f"{CONFIG_NAME}.yaml").defaults
    chosen = {name: option for entry in listed if OmegaConf.is_dict(entry) for name, option in entry.items()}
    lines = []
    for name, options in groups(hydra).items():
        told = ", ".join(f"{option}*" if option == chosen.get(name) else option for option in options)
        lines += textwrap.wrap(told, _WIDTH, initial_indent=f"  {name:<18} ", subsequent_indent=" " * 21)
    return "\n".join(lines)
