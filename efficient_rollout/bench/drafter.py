"""What drafting costs: plain engines and one per drafter decode the same work in turns, and time their passes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from efficient_rollout.bench.drafter_plan import PLAIN_COMPILED, PLAIN_EAGER, DrafterPlan, Measured, Run, SyncRun
from efficient_rollout.bench.work import Prompt
from efficient_rollout.cost_model.table import DRAFT, PLAIN, VERIFY
from efficient_rollout.errors import ConfigError, ProfileError

# Answers at the beginning of a run that are not ticks of the whole batch in its usual pace.
_RAGGED_ANSWERS = 3
_WARM_UP_TICKS_PER_LENGTH = 3


@contextmanager
def running_engines(plan: DrafterPlan) -> Iterator[dict[str, Any]]:
    """Start the engines, and yield them by arm; all are alive at once, and only one works at a time."""
    from efficient_rollout.measuring import starting

    engines: dict[str, Any] = {}
    try:
        for name, settings in {**dict.fromkeys(plan.plain_arms), **plan.drafters}.items():
            is_compiled = plan.is_compiled if settings is not None else name == PLAIN_COMPILED
            engines[name] = starting.start_engine(plan.model, _limits(plan, is_compiled=is_compiled), settings)
        yield engines
    finally:
        for engine in engines.values():
            starting.stop(engine)


def _limits(plan: DrafterPlan, *, is_compiled: bool) -> Any:
    from efficient_rollout.measuring.starting import EngineLimits

    longest = max(plan.longest_tokens, plan.context_tokens + plan.response_tokens, *map(len, plan.prompts))
    return EngineLimits(
        max_requests=max(plan.batches),
        max_context_tokens=longest,
        # Twice, so that the work's prefixes stay cached beside whatever else runs.
        kv_cache_tokens=2 * max(plan.batches) * longest,
        dtype=plan.dtype,
        is_compiled=is_compiled,
    )


def measure(plan: DrafterPlan, engines: Mapping[str, Any], on_progress: Callable[[str], None]) -> Measured:
    """Run every round.

    Args:
        plan: What is measured.
        engines: From `running_engines`.
        on_progress: Called with a line after each batch of each round, and each round of weight syncs.

    Raises:
        ConfigError: The policy's responses are too short for the contexts asked for.
        ProfileError: An engine did not do what was asked of it.
    """
    from efficient_rollout.measuring import offline

    prompts = grown_prompts(engines[PLAIN_EAGER], plan)
    measured = Measured()
    for batch in plan.batches:
        for arm, k in _cells(plan):
            warm_up = min(plan.response_tokens, _WARM_UP_TICKS_PER_LENGTH * (k + 1))
            _roll_out(plan, engines[arm], prompts[:batch], [k], warm_up)
    for number in range(plan.rounds):
        for batch in plan.batches:
            cells = _cells(plan)
            # Each round begins elsewhere: no arm is always first after a pause.
            start = number * len(plan.plain_arms) % len(cells)
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
            measured.syncs.append(SyncRun(arm=name, plain_reload_seconds=plain_s, **synced))
        on_progress(f"round {number + 1} of {plan.rounds}: weight syncs")
    measured.memory = {name: engines[name].collective_rpc("drafter_memory")[0] for name in plan.drafters}
    return measured


def _cells(plan: DrafterPlan) -> list[tuple[str, int]]:
    return [(name, 0) for name in plan.plain_arms] + [(name, k) for k in (0, *plan.lengths) for name in plan.drafters]


def grown_prompts(engine: Any, plan: DrafterPlan) -> list[Prompt]:
    """Return the prompts, continued by the policy itself until the runs' mean context is the plan's.

    Args:
        engine: Any of the plan's.
        plan: What is measured.

    Raises:
        ConfigError: Too few of the policy's responses are that long.
    """
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


def _roll_out(plan: DrafterPlan, engine: Any, prompts: Sequence[Prompt], pattern: list[int], num_tokens: int) -> Any:
    from efficient_rollout.measuring import offline, scripted

    works = [(prompt, num_tokens) for prompt in prompts]
    return offline.roll_out(engine, works, temperature=plan.temperature, extra_args={scripted.PATTERN: pattern})


def _switching_seconds(plan: DrafterPlan, engine: Any, arm: str, prompts: Sequence[Prompt]) -> float:
    """Draft at every other tick; return the seconds of one that drafts and one that verifies, medians."""
    from efficient_rollout.measuring import offline

    k, batch = plan.shown_length, len(prompts)
    offline.take_ticks(engine)
    _roll_out(plan, engine, prompts, [k, 0], plan.response_tokens)
    ticks = [t for t in offline.take_ticks(engine) if t.num_requests == batch and not t.had_prefill]
    drafting = [t.seconds for t in ticks if t.num_drafted == k and t.num_verified == 0]
    verifying = [t.seconds for t in ticks if t.num_drafted == 0 and t.num_verified == k * batch]
    if not drafting or not verifying:
        raise ProfileError(f"{arm} did not draft {k} tokens for {batch} requests at every other tick: its log says why")
    return median(drafting) + median(verifying)


def _measure_one(plan: DrafterPlan, engine: Any, arm: str, prompts: Sequence[Prompt], k: int, number: int) -> Run:
    from efficient_rollout.engine.statistics import take_rollout_stats
    from efficient_rollout.measuring import offline

    is_plain, batch = arm in plan.plain_arms, len(prompts)
    if not is_plain:
        offline.take_ticks(engine)
        take_rollout_stats(engine.collective_rpc)
    result = _roll_out(plan, engine, prompts, [k], plan.response_tokens)
    emitted = [len(ids) for ids in result.token_ids]
    assert emitted == [plan.response_tokens] * batch, f"{arm} emitted {emitted} tokens"
    passes = plain_passes(result.answer_seconds) if is_plain else _drafting_passes(engine, k, batch)
    return Run(
        arm=arm,
        batch=batch,
        num_draft_tokens=k,
        round=number,
        decode_seconds=result.seconds - result.answer_seconds[0],
        decoded_tokens=batch * (plan.response_tokens - 1),
        **passes,
    )


def plain_passes(answer_seconds: Sequence[float]) -> dict[str, Any]:
    """Return fields of `Run` from the times at which a plain engine answered, one a tick.

    Args:
        answer_seconds: Ascending; at least five.
    """
    ticks = [later - earlier for earlier, later in pairwise(answer_seconds)]
    steady = ticks[_RAGGED_ANSWERS:]
    return {"tick_seconds": median(steady), "num_ticks": len(steady)}


def _drafting_passes(engine: Any, k: int, batch: int) -> dict[str, Any]:
    from efficient_rollout.engine.statistics import take_rollout_stats
    from efficient_rollout.measuring import offline
    from efficient_rollout.measuring.probe import require_steady_ticks, seconds_of_passes

    steady = require_steady_ticks(offline.take_ticks(engine), k, batch)
    seconds = seconds_of_passes(steady, k)
    stats = take_rollout_stats(engine.collective_rpc)
    return {
        "tick_seconds": seconds[PLAIN] if k == 0 else median(tick.seconds for tick in steady),
        "draft_step_seconds": seconds.get(DRAFT),
        "verify_seconds": seconds.get(VERIFY),
        "mean_accepted_length": stats.mean_accepted_length,
        "mean_context_tokens": fmean(tick.mean_context_tokens for tick in steady),
        "num_ticks": len(steady),
        "part_seconds": _mean_parts([tick.part_seconds for tick in steady]),
    }


def _mean_parts(ticks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means: they add up to the mean tick, as medians would not."""
    parts = dict.fromkeys(part for tick in ticks for part in tick)
    return {part: fmean(tick.get(part, 0.0) for tick in ticks) for part in parts}
