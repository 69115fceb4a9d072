"""Every rule by name. On a command line a name may carry an argument: `always:4`, `batch_threshold:4,8`."""

from collections.abc import Callable
from importlib import import_module

from efficient_rollout.controller.inputs import RuleInputs
from efficient_rollout.controller.rule import Rule
from efficient_rollout.errors import ConfigError
from efficient_rollout.rule_table import RULES

# How a benchmark calls a rule on its command line, and in its results.
ALIASES = {"table": "batch_table"}


def split_names(text: str) -> list[str]:
    """Return the names of a list with commas; a piece that starts with no letter belongs to the argument before it.

    `never,batch_threshold:4,8` is two names.
    """
    names: list[str] = []
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        if names and not piece[0].isalpha():
            names[-1] += f",{piece}"
        else:
            names.append(piece)
    return names


def make_rule(name: str, inputs: RuleInputs) -> Rule:
    """Return a new rule, with a memory of its own.

    Args:
        name: A key of `RULES`; from a command line perhaps with `:argument`, which comes before `inputs`.
        inputs: What it is made from.

    Raises:
        ConfigError: the name is unknown, the argument malformed, or an input is missing.
    """
    bare, _, argument = name.partition(":")
    if bare not in RULES:
        raise ConfigError(f"unknown rule {bare!r}; choose one of {', '.join(RULES)}")
    module, _, function = RULES[bare].maker.partition(":")
    make: Callable[[RuleInputs, str], Rule] = getattr(import_module(f"{__package__}.{module}"), function)
    return make(inputs, argument)
