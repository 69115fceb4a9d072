"""Step "latency": seconds of ticks, of draft steps and of requantizing at the shapes of published policies.

Weights are random, so nothing is said of acceptance: it is stated, and the speed-up it would give computed.
"""

import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from efficient_rollout.controller.script import PATTERN
from efficient_rollout.cost_model.speedup import expected_tokens, speedup
from efficient_rollout.gpu_check.answers import Question, ask
from efficient_rollout.gpu_check.policies import make_shape
from efficient_rollout.gpu_check.stand import Measured, Stand, drafting, runnable_schemes, worker_of

_ACCEPTANCES = (0.7, 0.8, 0.9)
_REQUANTIZATIONS = 3


@dataclass(frozen=True, slots=True)
class _Work:
    """What is measured.

    Attributes:
        batches: Requests at once.
        lengths: Numbers of drafts, 0 first.
        prompt_tokens: Of each request.
        warm_up: Ticks before those that count.
        ticks: That count.
    """

    batches: tuple[int, ...] = (1, 8, 32)
    lengths: tuple[int, ...] = (0, 1, 2, 4, 7)
    prompt_tokens: int = 1024
    warm_up: int = 8
    ticks: int = 64


# Elsewhere than on a GPU: shows that the code runs.
_LEAST = _Work(batches=(1,), lengths=(0, 2), prompt_tokens=8, warm_up=2, ticks=2)


def check_latency(stand: Stand) -> Measured:
    """By shape and scheme; ticks are medians, of an engine with graphs on a GPU."""
    return {
        f"{shape}-{scheme}": _measure(stand, shape, scheme)
        for shape in stand.latency_shapes
        for scheme in runnable_schemes()[: stand.sizes.most_schemes]
    }


def _measure(stand: Stand, shape: str, scheme: str) -> Measured:
    work = _Work() if stand.is_gpu else _LEAST
    options: dict[str, Any] = {"load_format": "dummy", "enforce_eager": not stand.is_gpu}
    if stand.is_gpu:
        options |= {"gpu_memory_utilization": 0.9, "kv_cache_memory_bytes": None, "max_num_seqs": max(work.batches)}
        options |= {"max_model_len": 4096, "max_num_batched_tokens": 8192}
    policy = make_shape(stand.folder, shape)
    measured: Measured = {}
    with stand.engine(policy, drafting(scheme, max(work.lengths)), **options) as engine:
        for batch in work.batches:
            ticks = {k: _tick(engine, work, batch, k) for k in work.lengths}
            measured[f"batch_{batch}"] = _summary(ticks)
        measured |= _requantize(engine, stand)
    return measured


def _tick(engine: Any, work: _Work, batch: int, num_drafts: int) -> tuple[float, float]:
    """Median seconds of a tick, and mean seconds of a draft step (0 without drafts)."""
    num_ticks = work.warm_up + work.ticks
    # So many that no request ends, should every draft be accepted.
    _submit(engine, batch, num_drafts, work.prompt_tokens, (num_drafts + 1) * (num_ticks + batch + work.warm_up))
    # A prompt's pass is no tick of decoding: none is timed before every request has answered.
    answered: set[str] = set()
    while len(answered) < batch:
        answered |= {output.request_id for output in engine.llm_engine.step() if output.outputs[0].token_ids}
    ends = []
    engine.collective_rpc("take_rollout_stats")
    for _ in range(num_ticks):
        engine.llm_engine.step()
        ends.append(time.perf_counter())
    (stats,) = engine.collective_rpc("take_rollout_stats")
    engine.llm_engine.abort_request(sorted(answered))
    while engine.llm_engine.has_unfinished_requests():
        engine.llm_engine.step()
    # Brings the pipeline to rest, and leaves no tick of these requests to the next measurement.
    ask(engine, [Question(prompt=(1, 2, 3), seed=0)], 2)
    counted = ends[work.warm_up - 1 :]
    draft_s = stats["draft_seconds"] / (num_ticks * num_drafts) if num_drafts else 0.0
    return median(later - earlier for earlier, later in pairwise(counted)), draft_s


def _submit(engine: Any, batch: int, num_drafts: int, prompt_tokens: int, num_tokens: int) -> None:
    from vllm import SamplingParams

    words = engine.llm_engine.vllm_config.model_config.get_vocab_size()
    longest = engine.llm_engine.vllm_config.model_config.max_model_len - prompt_tokens
    started = time.monotonic_ns()
    for number in range(batch):
        parameters = SamplingParams(
            max_tokens=min(num_tokens, longest),
            ignore_eos=True,
            detokenize=False,
            seed=number,
            extra_args={PATTERN: [num_drafts]},
        )
        prompt = [(31 * number + 7 * place) % words for place in range(prompt_tokens)]
        engine.llm_engine.add_request(f"{started}-{number}", {"prompt_token_ids": prompt}, parameters)


def _summary(ticks: dict[int, tuple[float, float]]) -> Measured:
    """Milliseconds by number of drafts, their ratio, and the best length for each acceptance."""
    plain_s = ticks[0][0]
    drafting_lengths = [k for k in ticks if k]
    draft_s = median(ticks[k][1] for k in drafting_lengths)
    best = {}
    for acceptance in _ACCEPTANCES:
        speedups = {k: speedup(expected_tokens(acceptance, k), plain_s, ticks[k][0]) for k in drafting_lengths}
        length = max(speedups, key=speedups.__getitem__)
        best[f"{acceptance:g}"] = {"speedup": round(speedups[length], 3), "num_draft_tokens": length}
    return {
        "tick_ms": {str(k): round(1000 * seconds, 4) for k, (seconds, _) in ticks.items()},
        "draft_step_ms": round(1000 * draft_s, 4),
        "draft_over_target": round(draft_s / plain_s, 4),
        "speedup_at_acceptance": best,
    }


def _requantize(engine: Any, stand: Stand) -> Measured:
    """As a weight sync does behind its last tensor: every layer is shown to the drafter again."""
    import torch
    from vllm.model_executor.model_loader.utils import process_weights_after_loading

    worker, seconds = worker_of(engine), []
    packed = worker.self_drafter.packed
    for _ in range(_REQUANTIZATIONS):
        _wait(stand)
        started = time.perf_counter()
        with torch.inference_mode():
            process_weights_after_loading(
                worker.model_runner.get_model(), worker.model_config, torch.device(stand.device)
            )
        _wait(stand)
        seconds.append(time.perf_counter() - started)
    return {"requantize_s": round(min(seconds), 5), "drafter_bytes": packed.num_bytes}


def _wait(stand: Stand) -> None:
    if stand.is_gpu:
        import torch

        torch.cuda.synchronize()
