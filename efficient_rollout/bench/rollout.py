"""Arms take turns, round by round, on the same work, each in an engine that stays up for the whole run."""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from efficient_rollout.bench.work import Request
from efficient_rollout.config import Lookup, Settings
from efficient_rollout.controller.rule import ALIASES, Always, BatchThreshold, RuleInputs, make_rule, split_names
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.cost_model.profile import load_profile
from efficient_rollout.errors import ConfigError
from efficient_rollout.rule_table import RULES, RULES_WITH_PROFILE

if TYPE_CHECKING:
    from efficient_rollout.measuring.starting import StartEngine

logger = logging.getLogger(__name__)

PLAIN, ROLLOUT = "plain", "rollout"
_LEAST_TICK_TOKENS = 2048
_VLLM_LOOKUP_DRAFT_TOKENS = {"ngram": 4, "suffix": 24}


@dataclass(frozen=True, slots=True)
class Arm:
    """Stands for one column of the comparison: an engine and, in the self-drafting engine, a rule."""

    name: str  # as given on the command line
    engine: Literal["plain", "vllm_lookup", "self_drafting"]  # arms of one engine take turns in it
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
    return [Arm(PLAIN, "plain"), *(_arm(name) for name in names if name != PLAIN)]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """Holds one arm's rollout; the last three fields of self-drafting arms only."""

    seconds: float  # makespan
    finish_seconds: list[float]  # per request, in the order of the work
    token_ids: list[list[int]]  # emitted tokens per request
    ticks: list[tuple[float, int]] = field(default_factory=list)  # (start in seconds, draft tokens per request)
    seconds_by_draft_tokens: dict[int, float] = field(default_factory=dict)  # time by chosen k
    metrics: dict[str, float] = field(default_factory=dict)  # of the engine

    @property
    def num_tokens(self) -> int:
        """Return the tokens emitted, all requests together."""
        return sum(map(len, self.token_ids))

    @property
    def tokens_per_second(self) -> float:
        """Return emitted tokens over the makespan."""
        return self.num_tokens / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """Says what is run."""

    model: str  # the policy's directory
    arms: Sequence[Arm]  # `plain` first
    # The work of each round of `ROLLOUT`; further rounds by their name, in the same engines.
    rounds: Mapping[str, Sequence[Sequence[Request]]]
    settings: Settings  # of the self-drafting engine
    temperature: float = 1.0  # 0 is greedy
    eos_token_ids: tuple[int, ...] = ()  # natural ends; empty forces every response to its length
    dtype: str = "bfloat16"  # of the policy
    is_compiled: bool = False  # compiled mode for every engine
    first_seed: int | None = None  # of each round's requests, the next number for each; None: without seeds
    warm_up_tokens: int = 24  # of each request, before the first round


def run_plan(
    plan: BenchPlan, on_result: Callable[[str, Arm, RoundResult], None], start: "StartEngine | None" = None
) -> dict[str, dict[str, list[RoundResult]]]:
    """Start the engines, run every round, stop the engines.

    Args:
        plan: What is run.
        on_result: Called after each rollout with the round's name.
        start: Of engines without vLLM's lookup; None: `starting.start_engine`.

    Returns:
        One result per round, by the rounds' name, then by arm.
    """
    from efficient_rollout.measuring import starting

    engines: dict[str, Any] = {}
    names = {arm: arm.name if arm.engine == "vllm_lookup" else f"{arm.engine}:{arm.lookup}" for arm in plan.arms}
    results: dict[str, dict[str, list[RoundResult]]] = {
        name: {arm.name: [] for arm in plan.arms} for name in plan.rounds
    }
    try:
        for arm, engine_name in names.items():
            if engine_name not in engines:
                engines[engine_name] = _start(plan, arm, start or starting.start_engine)
        for engine_name in names.values():
            _warm_up(plan, engines[engine_name])
        runs = itertools.count()
        for name, works in plan.rounds.items():
            for number, requests in enumerate(works):
                # Each round begins with another arm: none is always first after a pause.
                first = number % len(plan.arms)
                for arm in (*plan.arms[first:], *plan.arms[:first]):
                    result = _roll_out(plan, arm, engines[names[arm]], next(runs), requests)
                    results[name][arm.name].append(result)
                    on_result(f"{name}, round {number + 1}", arm, result)
    finally:
        for engine in engines.values():
            starting.stop(engine)
    return results


def _start(plan: BenchPlan, arm: Arm, start: "StartEngine") -> Any:
    from efficient_rollout.measuring import starting

    # Every round's work runs at once, without preemption, in any engine.
    works = [requests for rounds in plan.rounds.values() for requests in rounds]
    # Stock vLLM on a CPU ends where a request with a seed has its prompt computed in pieces.
    prompt_tokens = max(sum(len(r.prompt_token_ids) for r in requests) for requests in works)
    limits = starting.EngineLimits(
        least_tick_tokens=_LEAST_TICK_TOKENS if plan.first_seed is None else max(_LEAST_TICK_TOKENS, prompt_tokens),
        max_requests=max(map(len, works)),
        max_context_tokens=max(r.num_tokens for requests in works for r in requests),
        kv_cache_tokens=max(sum(r.num_tokens for r in requests) for requests in works),
        dtype=plan.dtype,
        is_compiled=plan.is_compiled,
    )
    logger.info("starting the engine of arm %s", arm.name)
    if arm.engine == "vllm_lookup":
        return starting.start_vllm_lookup(plan.model, limits, arm.method, arm.num_draft_tokens)
    settings = plan.settings if arm.lookup is None else plan.settings.with_lookup(arm.lookup)
    return start(plan.model, limits, settings if arm.engine == "self_drafting" else None)


def _warm_up(plan: BenchPlan, engine: Any) -> None:
    """Generate a few tokens of each request; the self-drafting engine drafts as many as it ever may."""
    from efficient_rollout.measuring import offline, scripted

    works = [(r.prompt_token_ids, min(r.max_tokens, plan.warm_up_tokens)) for r in plan.rounds[ROLLOUT][0]]
    pattern = {scripted.PATTERN: [plan.settings.controller.max_draft_tokens, 0, 1]}
    offline.roll_out(engine, works, temperature=plan.temperature, extra_args=pattern)


def _roll_out(plan: BenchPlan, arm: Arm, engine: Any, run: int, requests: Sequence[Request]) -> RoundResult:
    """Do the whole work, with nothing of an earlier turn left in the engine."""
    from efficient_rollout.measuring import offline, scripted

    is_ours = arm.rule is not None
    engine.llm_engine.reset_prefix_cache()
    done = offline.roll_out(
        engine,
        requests,
        temperature=plan.temperature,
        eos_token_ids=plan.eos_token_ids,
        extra_args={scripted.RULE: arm.rule, scripted.RUN: run} if is_ours else None,
        records=is_ours,
        first_seed=plan.first_seed,
    )
    if not plan.eos_token_ids:
        emitted, forced = [len(ids) for ids in done.token_ids], [r.max_tokens for r in requests]
        assert emitted == forced, f"arm {arm.name} emitted {emitted} tokens instead of {forced}"
    by_k: dict[int, float] = {}
    for tick in done.ticks:
        by_k[tick.num_drafted] = by_k.get(tick.num_drafted, 0.0) + tick.seconds
    return RoundResult(
        seconds=done.seconds,
        finish_seconds=done.finish_seconds,
        token_ids=done.token_ids,
        ticks=[(tick.started - done.ticks[0].started, tick.num_drafted) for tick in done.ticks],
        seconds_by_draft_tokens=by_k,
        metrics=done.stats.to_metrics(rollout_seconds=done.seconds) if is_ours else {},
    )
