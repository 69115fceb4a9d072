"""Give running engines exact work, and read back what every tick did."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from efficient_rollout.engine.statistics import take_rollout_stats
from efficient_rollout.errors import ConfigError, InputFileError
from efficient_rollout.metrics.rollout_stats import RolloutStats

# A request: its prompt, and how many tokens it may emit.
Work = tuple[tuple[int, ...], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TickRecord:
    """Records one engine tick."""

    started: float  # seconds on the engine's own clock
    seconds: float  # from its beginning to the next tick's
    draft_seconds: float  # of them, inside the drafter
    num_requests: int  # requests with tokens in the tick
    num_verified: int  # draft tokens verified, all requests together
    num_drafted: int  # draft tokens per request drafted at the end of the tick
    had_prefill: bool  # prompt tokens were computed
    part_seconds: dict[str, float] = field(default_factory=dict)  # `recording.parts_of_tick`; empty on a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutResult:
    """Records what an engine did with a batch of work."""

    seconds: float  # from the first submission to the last token
    finish_seconds: list[float]  # when each request finished, in the order of the work
    token_ids: list[list[int]]  # emitted tokens, in the order of the work
    answer_seconds: list[float]  # when the engine's answers came, one a tick: stock engines leave no other record
    ticks: list[TickRecord] = field(default_factory=list)  # of an engine that records
    stats: RolloutStats = field(default_factory=RolloutStats)  # the same


def roll_out(
    engine: Any,
    works: Sequence[Work],
    *,
    temperature: float = 1.0,
    eos_token_ids: Sequence[int] = (),
    extra_args: dict[str, Any] | None = None,
    records: bool = False,
    limit_s: float = math.inf,
    least_ticks: int = 0,
    first_seed: int | None = None,
) -> RolloutResult:
    """Submit all work at once to an idle engine, and wait for it.

    Args:
        engine: From `starting.py`.
        works: The requests.
        temperature: 0 is greedy.
        eos_token_ids: End a response early; without any, every request emits exactly its `max_tokens`.
        extra_args: For `scripted.ScriptedScheduler`.
        records: Whether the engine drafts, and its ticks and statistics are wanted.
        limit_s: What has not finished by then is aborted, and missing in `token_ids`.
        least_ticks: Answers of the engine that are waited for, however late it is.
        first_seed: Of the first request; each has the next number. None: without seeds.

    Raises:
        ConfigError: A request cannot fit the engine.
    """
    if records:
        _recorded(engine)  # whatever was before
    llm_engine, started = engine.llm_engine, time.perf_counter()
    sampling = {"temperature": temperature, "ignore_eos": not eos_token_ids, "stop_token_ids": list(eos_token_ids)}
    names = _submit(llm_engine, works, first_seed, extra_args=extra_args, **sampling)
    finished, answers = _wait(llm_engine, names, started, limit_s, least_ticks)
    seconds = time.perf_counter() - started
    drain(engine)
    ends = [finished.get(name, (seconds, [])) for name in names]
    return RolloutResult(
        seconds=seconds,
        finish_seconds=[end for end, _ in ends],
        token_ids=[token_ids for _, token_ids in ends],
        answer_seconds=answers,
        **(_recorded(engine) if records else {}),
    )


def _wait(
    llm_engine: Any, names: Sequence[str], started: float, limit_s: float, least_ticks: int
) -> tuple[dict[str, tuple[float, list[int]]], list[float]]:
    """Return when each request finished, and with which tokens; and the times of the engine's answers."""
    finished, answers = {}, []
    while llm_engine.has_unfinished_requests():
        if time.perf_counter() - started > limit_s and len(answers) >= least_ticks:
            llm_engine.abort_request([name for name in names if name not in finished])
            break
        outputs = llm_engine.step()
        answers.append(time.perf_counter() - started)
        ended = [output for output in outputs if output.finished]
        finished |= {output.request_id: (answers[-1], list(output.outputs[0].token_ids)) for output in ended}
    return finished, answers


def drain(engine: Any) -> None:
    """Run the last, empty tick, which brings statistics to the worker; an engine of its own process does by itself."""
    core = getattr(engine.llm_engine.engine_core, "engine_core", None)
    while core is not None and (core.scheduler.has_requests() or core.batch_queue):
        core.step_fn()


def _submit(llm_engine: Any, works: Sequence[Work], first_seed: int | None, **sampling: Any) -> list[str]:
    longest = max(len(prompt) + max_tokens for prompt, max_tokens in works)
    max_model_len = llm_engine.vllm_config.model_config.max_model_len
    if longest > max_model_len:
        raise ConfigError(f"a request of {longest} tokens does not fit an engine for {max_model_len}")
    batch = time.monotonic_ns()
    names = [f"{batch}-{i}" for i in range(len(works))]
    sampling |= {"detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}
    for number, (name, (prompt, max_tokens)) in enumerate(zip(names, works, strict=True)):
        seed = None if first_seed is None else first_seed + number
        params = SamplingParams(seed=seed, max_tokens=max_tokens, **sampling)
        llm_engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)
    return names


def _recorded(engine: Any) -> dict[str, Any]:
    return {"ticks": take_ticks(engine), "stats": take_rollout_stats(engine.collective_rpc)}


def take_ticks(engine: Any) -> list[TickRecord]:
    """Return ticks since the last call, of an engine that drafts."""
    return [TickRecord(**tick) for tick in engine.collective_rpc("take_ticks")[0]]


def sync_weights(engine: Any, checkpoint: str) -> dict[str, float]:
    """Bring a checkpoint, a directory of safetensors, into an idle engine that drafts, as a weight sync would.

    Returns:
        `weight_sync_seconds`, reading the files included, and of them `requantize_seconds`.

    Raises:
        InputFileError: There are none.
    """
    if not any(Path(checkpoint).glob("*.safetensors")):
        raise InputFileError(f"{checkpoint} has no *.safetensors to sync; give a checkpoint in that format")
    seconds: dict[str, float] = engine.collective_rpc("sync_from", args=(checkpoint,))[0]
    engine.reset_prefix_cache()
    return seconds


def reload_plain(engine: Any) -> float:
    """Return the seconds that a stock engine takes to load its checkpoint again, by vLLM's own means."""
    started = time.perf_counter()
    engine.collective_rpc("reload_weights")
    seconds = time.perf_counter() - started
    engine.reset_prefix_cache()
    return seconds
