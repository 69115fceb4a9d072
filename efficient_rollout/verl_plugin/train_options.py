"""Arguments of `efficient-rollout train`: hydra's own flags, and overrides."""

import argparse
import contextlib
import io
import textwrap
from collections.abc import Mapping, Sequence

from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from efficient_rollout.errors import ConfigError
from efficient_rollout.secrets import DiscreetParser, text_without_secrets
from efficient_rollout.verl_plugin.compose import config_dir
from efficient_rollout.verl_plugin.job_hydra import CONFIG_NAME, told_plainly

_PROGRAM = "efficient-rollout train"
# hydra's flags that mean something here, and what where hydra's own words do not tell; what the others choose is this
# command's own.
_FLAGS = {
    "help": "Show this and exit",
    "cfg": "",
    "resolve": "",
    "package": "With --cfg, the part to show, as in trainer or actor_rollout_ref.rollout",
    "info": "",
    "multirun": "Run a job for each combination of listed values (key=a,b), one after the other, in a process each",
    "config_dir": "A folder of your own, whose groups add to these: DIR/recipe/mine.yaml is recipe=mine",
    "run": "Run a job, as without any flag",
    "hydra_help": "",
    "version": "",
}
_ONE_OF = ("run", "multirun", "cfg", "info")
_WIDTH, _INDENT = 110, 20
_USAGE = f"""\
usage: {_PROGRAM} [flags] [key=value ...]

Train with veRL. Every veRL option is an override: key=value; +key=value where veRL lists no such key; ~key takes one
out. This package's own stand under actor_rollout_ref.rollout.custom.efficient_rollout.

groups, of which group=option chooses (* where nothing else is chosen):
"""
_EXAMPLES = f"""
examples:
  {_PROGRAM} size=small controller=always trainer.total_training_steps=5
  {_PROGRAM} --cfg job --package trainer recipe=grpo_quickstart
  {_PROGRAM} --multirun recipe=grpo_quickstart efficient_rollout=off,threshold
"""


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """Return what hydra makes of the arguments; flags may stand between overrides.

    Raises:
        ConfigError: Flags exclude each other, or one has no meaning here.
        SystemExit: A flag is unknown.
    """
    options = _parser().parse_intermixed_args(list(argv))
    given = {name for name, value in vars(options).items() if value not in (None, False, [])}
    if useless := given - {*_FLAGS, "overrides"}:
        raise ConfigError(f"{_flag(min(useless))} has no meaning here: {_PROGRAM} runs its own job")
    if len(both := [_flag(name) for name in _ONE_OF if name in given]) > 1:
        raise ConfigError(f"only one of {', '.join(both)} can be given")
    if options.resolve and not options.cfg:
        raise ConfigError("--resolve goes with --cfg")
    if options.package and not options.cfg:
        raise ConfigError("--package goes with --cfg")
    return options


def show(options: argparse.Namespace, hydra: Hydra) -> str | None:
    """Do what the flags ask for in the place of a job, if they do.

    Returns:
        The text to print; None where a job is to run.

    Raises:
        ConfigError: An override names nothing, or cannot be resolved.
    """
    if options.help:
        return help_text(hydra)
    printed = io.StringIO()
    with told_plainly(hydra), contextlib.redirect_stdout(printed):
        if options.hydra_help:
            hydra.hydra_help(CONFIG_NAME, _parser(), options)
        elif options.cfg:
            hydra.show_cfg(CONFIG_NAME, options.overrides, options.cfg, options.package, options.resolve)
        elif options.info:
            hydra.show_info(options.info, CONFIG_NAME, options.overrides)
        else:
            return None
    return text_without_secrets(printed.getvalue())


def help_text(hydra: Hydra) -> str:
    """Return usage, every group with its options, hydra's flags, and examples."""
    chosen = _defaults()
    groups = [
        _entry(name, ", ".join(f"{option}*" if option == chosen.get(name) else option for option in options))
        for name, options in hydra.config_loader.groups().items()
    ]
    flags = [
        _entry(", ".join(reversed(action.option_strings)), _FLAGS[action.dest] or str(action.help))
        for action in _parser()._actions
        if action.dest in _FLAGS
    ]
    return "".join([_USAGE, *groups, "\nflags:\n", *flags, _EXAMPLES])


def _defaults() -> Mapping[str, str]:
    listed = OmegaConf.load(config_dir() / f"{CONFIG_NAME}.yaml").defaults
    return {str(name): option for entry in listed if OmegaConf.is_dict(entry) for name, option in entry.items()}


def _entry(name: str, text: str) -> str:
    begin, below = f"  {name:<{_INDENT - 2}} ", " " * (_INDENT + 1)
    return textwrap.fill(" ".join(text.split()), _WIDTH, initial_indent=begin, subsequent_indent=below) + "\n"


def _parser() -> argparse.ArgumentParser:
    usage = "%(prog)s [flags] [key=value ...]; --help lists the flags and the groups"
    return DiscreetParser(_PROGRAM, usage, parents=[get_args_parser()], add_help=False)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
