"""The controller's rules by name: the one line that a rule has outside its own file."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RuleEntry:
    """Names the `module:function` in `controller/` that makes a rule, and whether it predicts from a profile."""

    maker: str
    needs_profile: bool = False


RULES = {
    "never": RuleEntry("rule:make_never"),
    "always": RuleEntry("rule:make_always"),
    "batch_threshold": RuleEntry("rule:make_batch_threshold"),
    "batch_table": RuleEntry("batch_table:make", needs_profile=True),
    "published": RuleEntry("published:make", needs_profile=True),
    "cost_model": RuleEntry("cost_model_rule:make", needs_profile=True),
}
RULES_WITH_PROFILE = tuple(name for name, entry in RULES.items() if entry.needs_profile)
