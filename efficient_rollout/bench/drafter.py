"""What drafting costs: plain engines and one per drafter decode the same work in turns, and time their passes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from efficient_rollout.bench.work import Prompt
from efficient_rollout.config import Settings
from efficient_rollout.cost_model.table import DRAFT, VERIFY
from efficient_rollout.errors import ConfigError, ProfileError

if TYPE_CHECKING:
    from efficient_rollout.measuring.offline import RolloutResult

PLAIN_EAGER, PLAIN_COMPILED = "plain eager", "plain compiled"
_SHOWN_LENGTH = 4
# Answers at the beginning of a run that are not ticks of the whole batch in its usual pace.
_RAGGED_ANSWERS = 3
_WARM_UP_TICKS_PER_LENGTH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterPlan:
    """Says what is measured."""

    model: str  # the policy's directory
    drafters: Mapping[str, Settings]  # settings by the name of the arm
    batches: tuple[int, ...]  # running requests, ascending
    lengths: tuple[int, ...]  # fixed k of the drafting arms, ascending
    context_tokens: int  # mean tokens per request while its passes are timed
    response_tokens: int  # emitted by every request of a run
    prompts: Sequence[Prompt]  # more than the largest batch, for some responses end before the contexts are long enough
    eos_token_ids: tuple[int, ...]  # end a response while contexts are made; empty where prompts already are that long
    rounds: int  # runs of each arm at each batch and k, and weight syncs of each
    temperature: float  # 0 is greedy
    dtype: str  # of the policy
    is_compiled: bool  # compiled mode for the drafting engines
    plain_arms: tuple[str, ...]  # `PLAIN_EAGER`, and `PLAIN_COMPILED` where there is one
    longest_tokens: int = 0  # longest prompt and response of whatever else the engines will be asked

    @property
    def shown_length(self) -> int:
        """Return the k that summaries show: 4, whose pass verifies 5 positions, or the nearest that is measured."""
        return min(self.lengths, key=lambda k: (abs(k - _SHOWN_LENGTH), k))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Holds one arm's decoding of one batch of work with one k; seconds are medians of ticks with the whole batch."""

    arm: str  # a plain engine's name, or a drafter's
    batch: int  # requests
    num_draft_tokens: int  # k; 0 in a drafting arm is its engine with nothing to draft
    round: int  # number of the round
    tick_seconds: float
    draft_step_seconds: float | None = None  # per draft token, inside the drafter; None without drafts
    verify_seconds: float | None = None  # rest of the tick: pass over k + 1 positions, sampling; None without drafts
    decode_seconds: float  # from the end of the prefill to the last token
    decoded_tokens: int  # emitted in that time
    mean_accepted_length: float | None = None  # tokens per verify pass, the policy's own included; None without drafts
    num_ticks: int  # behind the medians
    part_seconds: dict[str, float] = field(default_factory=dict)  # of the mean tick, what it was doing; not of plain


@dataclass(slots=True)
class Measured:
    """Holds everything a run of the plan brought."""

    runs: list[Run] = field(default_factory=list)  # of every arm, batch, k and round
    # By drafter and batch, seconds a round of two ticks: one that only drafts, and one that only verifies.
    switches: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    # Of every drafter and round, the drafter as `arm`: `weight_sync_seconds`, of them `requantize_seconds`, and
    # `plain_reload_seconds` of the eager plain engine in the same round.
    syncs: list[dict[str, Any]] = field(default_factory=list)
    # By drafter its `drafter_bytes`, and its `num_packed_weights`: policy's weights that have a packed copy.
    memory: dict[str, dict[str, int]] = field(default_factory=dict)


@contextmanager
def running_engines(plan: DrafterPlan) -> Iterator[dict[str, Any]]:
    """Start the engines, and yield them by arm; all are alive at once, and only one works at a time."""
    from efficient_rollout.measuring import starting

    longest = max(plan.longest_tokens, plan.context_tokens + plan.response_tokens, *map(len, plan.prompts))
    engines: dict[str, Any] = {}
    try:
        for name, settings in {**dict.fromkeys(plan.plain_arms), **plan.drafters}.items():
            limits = starting.EngineLimits(
                max_requests=max(plan.batches),
                max_context_tokens=longest,
                # Twice, so that the work's prefixes stay cached beside whatever else runs.
                kv_cache_tokens=2 * max(plan.batches) * longest,
                dtype=plan.dtype,
                is_compiled=plan.is_compiled if settings is not None else name == PLAIN_COMPILED,
            )
            engines[name] = starting.start_engine(plan.model, limits, settings)
        yield engines
    finally:
        for engine in engines.values():
            starting.stop(engine)


def measure(plan: DrafterPlan, engines: Mapping[str, Any], on_progress: Callable[[str], None]) -> Measured:
    """Run every round in `running_engines`; tell of each batch of each, and of each round of weight syncs.

    Raises:
        ConfigError: The policy's responses are too short for the contexts asked for.
        ProfileError: An engine did not do what was asked of it.
    """
    from efficient_rollout.measuring import offline

    prompts = _grown_prompts(engines[PLAIN_EAGER], plan)
    measured = Measured()
    cells = [(arm, 0) for arm in plan.plain_arms] + [(arm, k) for k in (0, *plan.lengths) for arm in plan.drafters]
    for batch in plan.batches:
        for arm, k in cells:
            warm_up = min(plan.response_tokens, _WARM_UP_TICKS_PER_LENGTH * (k + 1))
            _roll_out(plan, engines[arm], prompts[:batch], [k], warm_up, records=False)
    for number in range(plan.rounds):
        # Each round begins elsewhere: no arm is always first after a pause.
        start = number * len(plan.plain_arms) % len(cells)
        for batch in plan.batches:
            for arm, k in (*cells[start:], *cells[:start]):
                measured.runs.append(_measure_one(plan, engines[arm], arm, prompts[:batch], k, number))
            for name in plan.drafters:
                seconds = _switching_seconds(plan, engines[name], name, prompts[:batch])
                measured.switches.setdefault((name, batch), []).append(seconds)
            on_progress(f"round {number + 1} of {plan.rounds}: {batch} sequences, {len(cells)} runs")
    for number in range(plan.rounds):
        plain_s = offline.reload_plain(engines[PLAIN_EAGER])
        for name in plan.drafters:
            synced = offline.sync_weights(engines[name], plan.model)
            measured.syncs.append({"arm": name, "plain_reload_seconds": plain_s, **synced})
        on_progress(f"round {number + 1} of {plan.rounds}: weight syncs")
    measured.memory = {name: engines[name].collective_rpc("drafter_memory")[0] for name in plan.drafters}
    return measured


def _grown_prompts(engine: Any, plan: DrafterPlan) -> list[Prompt]:
    """Return the prompts, continued by the policy itself until the runs' mean context is the plan's."""
    from efficient_rollout.measuring import offline

    num_tokens = max(1, plan.context_tokens - plan.response_tokens // 2)
    short = [prompt for prompt in plan.prompts if len(prompt) < num_tokens]
    grown = [prompt for prompt in plan.prompts if len(prompt) >= num_tokens]
    if short:
        works = [(prompt, num_tokens - len(prompt)) for prompt in short]
        result = offline.roll_out(engine, works, temperature=plan.temperature, eos_token_ids=plan.eos_token_ids)
        responses = zip(short, result.token_ids, strict=True)
        whole = [(*prompt, *ids) for prompt, ids in responses if not ids or ids[-1] not in plan.eos_token_ids]
        grown += [prompt for prompt in whole if len(prompt) == num_tokens]
    if len(grown) < max(plan.batches):
        raise ConfigError(
            f"only {len(grown)} of {len(plan.prompts)} responses reach {num_tokens} tokens, prompt included, and "
            f"{max(plan.batches)} are needed; give a shorter --context or smaller --batches"
        )
    return grown[: max(plan.batches)]


def _roll_out(
    plan: DrafterPlan, engine: Any, prompts: Sequence[Prompt], pattern: list[int], num_tokens: int, *, records: bool
) -> "RolloutResult":
    from efficient_rollout.measuring import offline, scripted

    works, wanted = [(prompt, num_tokens) for prompt in prompts], {scripted.PATTERN: pattern}
    return offline.roll_out(engine, works, temperature=plan.temperature, extra_args=wanted, records=records)


def _switching_seconds(plan: DrafterPlan, engine: Any, arm: str, prompts: Sequence[Prompt]) -> float:
    """Draft at every other tick; return the seconds of one that drafts and one that verifies, medians."""
    k, batch = plan.shown_length, len(prompts)
    result = _roll_out(plan, engine, prompts, [k, 0], plan.response_tokens, records=True)
    ticks = [t for t in result.ticks if t.num_requests == batch and not t.had_prefill]
    drafting = [t.seconds for t in ticks if t.num_drafted == k and t.num_verified == 0]
    verifying = [t.seconds for t in ticks if t.num_drafted == 0 and t.num_verified == k * batch]
    if not drafting or not verifying:
        raise ProfileError(f"{arm} did not draft {k} tokens for {batch} requests at every other tick: its log says why")
    return median(drafting) + median(verifying)


def _measure_one(plan: DrafterPlan, engine: Any, arm: str, prompts: Sequence[Prompt], k: int, number: int) -> Run:
    is_plain, batch = arm in plan.plain_arms, len(prompts)
    result = _roll_out(plan, engine, prompts, [k], plan.response_tokens, records=not is_plain)
    emitted = [len(ids) for ids in result.token_ids]
    assert emitted == [plan.response_tokens] * batch, f"{arm} emitted {emitted} tokens"
    return Run(
        arm=arm,
        batch=batch,
        num_draft_tokens=k,
        round=number,
        decode_seconds=result.seconds - result.answer_seconds[0],
        decoded_tokens=batch * (plan.response_tokens - 1),
        **(plain_passes(result.answer_seconds) if is_plain else _drafting_passes(result, k, batch)),
    )


def plain_passes(answer_seconds: Sequence[float]) -> dict[str, Any]:
    """Return fields of `Run` from the times, ascending, at which a plain engine answered, one a tick; at least five."""
    steady = [later - earlier for earlier, later in pairwise(answer_seconds)][_RAGGED_ANSWERS:]
    return {"tick_seconds": median(steady), "num_ticks": len(steady)}


def _drafting_passes(result: "RolloutResult", k: int, batch: int) -> dict[str, Any]:
    from efficient_rollout.measuring.probe import require_steady_ticks, seconds_of_passes

    steady = require_steady_ticks(result.ticks, k, batch)
    seconds = seconds_of_passes(steady, k)
    parts = dict.fromkeys(part for tick in steady for part in tick.part_seconds)
    return {
        "tick_seconds": median(tick.seconds for tick in steady),
        "draft_step_seconds": seconds.get(DRAFT),
        "verify_seconds": seconds.get(VERIFY),
        "mean_accepted_length": result.stats.mean_accepted_length,
        "num_ticks": len(steady),
        # Means add up to the mean tick, as medians would not.
        "part_seconds": {part: fmean(tick.part_seconds.get(part, 0.0) for tick in steady) for part in parts},
    }
