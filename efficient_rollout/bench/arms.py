"""What can be compared: an arm is an engine and, in the self-drafting engine, a rule."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from efficient_rollout.config import Lookup
from efficient_rollout.controller.rule import ALIASES, Always, BatchThreshold, RuleInputs, make_rule, split_names
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.cost_model.profile import load_profile
from efficient_rollout.errors import ConfigError
from efficient_rollout.rule_table import RULES, RULES_WITH_PROFILE

PLAIN = "plain"
_VLLM_LOOKUP_DRAFT_TOKENS = {"ngram": 4, "suffix": 24}
EngineKind = Literal["plain", "vllm_lookup", "self_drafting"]


@dataclass(frozen=True, slots=True)
class Arm:
    """Stands for one column of the comparison."""

    name: str  # as given on the command line
    engine: EngineKind  # which engine serves it; arms of one engine take turns in it
    rule: str | None = None  # of the controller, where the engine has one
    num_draft_tokens: int = 0  # of vLLM's own method of lookup, at most
    # Where the drafter's copies are taken from: with it, the rule has an engine of its own. None: as by default.
    lookup: Lookup | None = None

    @property
    def method(self) -> str:
        """Return the name of vLLM's own method of lookup."""
        return self.name.partition(":")[0]

    @property
    def needs_profile(self) -> bool:
        """Tell whether its rule reads a latency profile."""
        bare, _, argument = (self.rule or "").partition(":")
        return bare in RULES_WITH_PROFILE and not (bare == "batch_table" and argument)


def parse_arms(text: str) -> list[Arm]:
    """Return the arms of a list of names (`split_names`); `plain` is always among them, and first.

    Raises:
        ConfigError: An arm is unknown, malformed or repeated.
    """
    names = split_names(text)
    if len(set(names)) != len(names):
        raise ConfigError(f"--arms repeats a name: {', '.join(names)}")
    others = [_arm(name) for name in names if name != PLAIN]
    return [Arm(PLAIN, "plain"), *others]


def _arm(name: str) -> Arm:
    bare, _, argument = name.partition(":")
    if bare in _VLLM_LOOKUP_DRAFT_TOKENS:
        if argument and not (argument.isdecimal() and int(argument) > 0):
            raise ConfigError(f"{bare} takes one number of draft tokens, as in {bare}:4; got {argument!r}")
        if bare == "suffix" and not find_spec("arctic_inference"):
            raise ConfigError("vLLM's suffix method is in a package of its own: pip install arctic-inference==0.1.1")
        return Arm(name, "vllm_lookup", num_draft_tokens=int(argument or _VLLM_LOOKUP_DRAFT_TOKENS[bare]))
    if bare in get_args(Lookup) and argument:
        return replace(_arm(argument), name=name, lookup=bare)
    rule = ALIASES.get(bare, bare)
    if rule not in RULES:
        known = ", ".join((PLAIN, *_VLLM_LOOKUP_DRAFT_TOKENS, *ALIASES, *RULES))
        raise ConfigError(f"unknown arm {bare!r}; choose among {known}")
    return Arm(name, "self_drafting", rule=f"{rule}:{argument}" if argument else rule)


def check_arms(arms: Sequence[Arm], *, max_draft_tokens: int, profile: Path | None) -> None:
    """Make every rule once, before any engine is started; without a profile, those that need none.

    Raises:
        ConfigError: One has a malformed argument, or drafts more than the engine.
        ProfileError: The profile cannot be read.
    """
    table = None if profile is None else TickTable(load_profile(profile).model, max_draft_tokens)
    inputs = RuleInputs(max_draft_tokens=max_draft_tokens, table=table)
    for arm in arms:
        if arm.rule is None or (arm.needs_profile and table is None):
            continue
        rule = make_rule(arm.rule, inputs)
        if isinstance(rule, Always | BatchThreshold) and rule.num_draft_tokens > max_draft_tokens:
            raise ConfigError(
                f"{arm.name} drafts {rule.num_draft_tokens} tokens, the engine at most {max_draft_tokens}; "
                f"raise --max-draft-tokens"
            )
