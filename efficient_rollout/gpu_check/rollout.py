"""Step "acceptance": how many drafts of a policy stand, of one that was trained and not of random weights.

Step "latency": a latency profile, and seconds of requantizing, at the shapes of published policies. Weights are random,
so nothing is said of acceptance: it is stated, and the speed-up it would give computed.

Step "rollout": a long-tailed batch, rolled out by stock vLLM and by an engine that drafts, in turns. At the shapes of
published policies, whose weights are random: their drafts are all accepted. So many are made wrong on purpose that as
many stand as the trained policy had accepted.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.model_executor.model_loader.utils import process_weights_after_loading

from efficient_rollout.bench.acceptance import acceptance
from efficient_rollout.bench.report import say, summarize
from efficient_rollout.bench.rollout import PLAIN, ROLLOUT, BenchPlan, parse_arms, run_plan
from efficient_rollout.bench.work import RandomPrompts, Request, TaskPrompts, eos_token_ids, requests_of
from efficient_rollout.controller.cli import best_of, explain
from efficient_rollout.cost_model.model_shape import read_model_shape
from efficient_rollout.cost_model.profile import Profile, save_profile
from efficient_rollout.engine.statistics import take_rollout_stats
from efficient_rollout.files import read_json
from efficient_rollout.gpu_check.samples import Question, ask
from efficient_rollout.gpu_check.stand import (
    Measured,
    Stand,
    drafting,
    end_engine,
    median_seconds,
    require,
    runnable_schemes,
    worker_of,
)
from efficient_rollout.gpu_check.steps import measured_path
from efficient_rollout.gpu_check.weights import make_shape
from efficient_rollout.measuring.probe import ProbeSettings, calibrate_engine
from efficient_rollout.metrics.names import ACCEPTANCE_RATE
from efficient_rollout.policy_config import read_policy_config
from efficient_rollout.provenance import provenance
from efficient_rollout.simulator.trace import draw_trace
from efficient_rollout.tasks.policy import ensure_policy

# Longer chains are rare where other requests run; the fourth draft tells how acceptance falls along a chain.
_DRAFTS = 4
_POSITIONS = 1024
_ACCEPTANCES = (0.7, 0.8, 0.9)
_SHOWN_BATCHES, _SHOWN_CONTEXT = (1, 8, 32, 128), 1024
MOST_DRAFTS = 8
# Elsewhere than on a GPU: shows that the code runs.
_LEAST_PROBE = ProbeSettings(batches=(1,), contexts=(8,), lengths=(1, 2), max_points=12, seconds=1.0, dtype="float32")
_RULE = "cost_model"
# And, for comparison, a rule that always drafts.
_ARMS = f"{PLAIN},always:4,{_RULE}"
# Requests, response lengths, prompt tokens and rounds: the published rollouts' batch; a mean of 800 tokens with a tail
# five times as long.
_WORK = (128, "lognormal:800,0.8,4096", 512, 3)
# Elsewhere than on a GPU: shows that the code runs.
_LEAST_WORK = (2, "lognormal:6,0.5,10", 4, 1)
# Of each engine beside weights and KV cache: graphs, activations, CUDA itself.
_SPARE_BYTES = 6 << 30


def check_acceptance(stand: Stand) -> Measured:
    """Measure the shares of drafts that stand, by scheme and position.

    Responses are natural, at temperature 1.
    """
    sizes = stand.sizes
    policy = ensure_policy(sizes.trained_policy)
    prompts = TaskPrompts(sizes.trained_policy, str(policy)).draw([0] * sizes.num_prompts, seed=0)
    ends = eos_token_ids(read_policy_config(policy))
    asked = [Question(prompt=prompt, seed=seed, ends=ends) for seed, prompt in enumerate(prompts)]
    measured: Measured = {"policy": policy.name, "prompts": len(asked)}
    for scheme in runnable_schemes()[: sizes.most_schemes]:
        with stand.engine(policy, drafting(scheme, _DRAFTS), max_context_tokens=_POSITIONS) as engine:
            take_rollout_stats(engine.collective_rpc)
            ask(engine, asked, sizes.response_tokens, drafts=(_DRAFTS,))
            rates = acceptance(take_rollout_stats(engine.collective_rpc))
        verified = rates["num_verify_passes"]
        require(verified > 0, "verified drafts", f"{policy.name}, {scheme}", "some", verified)
        measured[scheme] = rates
    return measured


def check_latency(stand: Stand) -> Measured:
    """Measure by shape and scheme; the profiles are files, for rules that need one."""
    return {
        f"{shape}-{scheme}": _measure_latency(stand, shape, scheme)
        for shape in stand.shapes
        for scheme in runnable_schemes()[: stand.sizes.most_schemes]
    }


def profile_path(folder: Path, shape: str, scheme: str) -> Path:
    """Return where this step leaves the profile of a shape."""
    return folder / "profiles" / f"{shape}-{scheme}.json"


def _measure_latency(stand: Stand, shape: str, scheme: str) -> Measured:
    probe = _LEAST_PROBE
    if stand.is_gpu:
        batches = (1, 2, 4, 8, 16, 32, 64, 128)
        probe = ProbeSettings(batches=batches, lengths=(1, 2, 4, MOST_DRAFTS), dtype=stand.dtype, is_compiled=True)
    profile = calibrate_engine(
        str(make_shape(stand.folder, shape)),
        drafting(scheme, MOST_DRAFTS),
        probe,
        provenance={"source": "gpu-check", **provenance()},
        start=stand.start_measured,
        and_then=partial(_requantize, stand),
    )
    save_profile(profile, profile_path(stand.folder, shape, scheme))
    spent = {name: profile.provenance[name] for name in ("requantize_s", "drafter_bytes", "tick_spread")}
    return {f"batch_{batch}": _summary(profile, batch) for batch in _SHOWN_BATCHES} | spent


def _summary(profile: Profile, batch: int) -> Measured:
    """Return milliseconds by number of drafts, their ratio, and the best length for each acceptance."""
    told = {p: explain(profile.model, batch, _SHOWN_CONTEXT, p, range(MOST_DRAFTS + 1)) for p in _ACCEPTANCES}
    plain, draft, _ = profile.model.pass_seconds(1, batch, np.array([float(_SHOWN_CONTEXT)]))
    return {
        "tick_ms": {str(one.num_draft_tokens): round(1000 * one.tick_seconds, 4) for one in told[_ACCEPTANCES[0]]},
        "draft_step_ms": round(1000 * float(draft[0, 0]), 4),
        "draft_over_target": round(float(draft[0, 0] / plain[0]), 4),
        "speedup_at_acceptance": {
            f"{p:g}": {"speedup": round(best.speedup, 3), "num_draft_tokens": best.num_draft_tokens}
            for p, best in ((p, best_of(predicted)) for p, predicted in told.items())
        },
    }


def _requantize(stand: Stand, engine: Any) -> Measured:
    """Show every layer to the drafter again, as a weight sync does behind its last tensor."""
    worker = worker_of(engine)
    model, config, device = worker.model_runner.get_model(), worker.model_config, torch.device(stand.device)
    with torch.inference_mode():
        seconds = median_seconds(stand, lambda: process_weights_after_loading(model, config, device))
    return {"requantize_s": round(seconds, 5), "drafter_bytes": worker.self_drafter.packed.num_bytes}


def check_rollout(stand: Stand) -> Measured:
    """Measure by shape, with the first scheme that can run.

    A shape whose two engines do not fit the GPU is named so.
    """
    scheme = runnable_schemes()[0]
    # Of the step before.
    rates = read_json(measured_path(stand.folder, "acceptance"), what="the acceptance")[scheme]
    accepted = float(rates["acceptance_rate"][0])
    measured = {f"{shape}-{scheme}": _measure_rollout(stand, shape, scheme, accepted) for shape in stand.shapes}
    return {"stated_acceptance": round(accepted, 4), **measured}


def _measure_rollout(stand: Stand, shape: str, scheme: str, accepted: float) -> Measured:
    policy = make_shape(stand.folder, shape)
    num_requests, lengths, prompt_tokens, num_rounds = _WORK if stand.is_gpu else _LEAST_WORK
    trace = draw_trace(lengths, num_requests, 1, seed=0, prompt_tokens=prompt_tokens)
    work = requests_of(trace, RandomPrompts(read_policy_config(policy).size("vocab_size")), seed=0)
    needed, free = _needed_bytes(str(policy), work), stand.free_bytes()
    if free is not None and needed > free:
        return {"left_out": f"two engines of it need {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} are free"}
    profile = str(profile_path(stand.folder, shape, scheme))
    plan = BenchPlan(
        model=str(policy),
        arms=parse_arms(_ARMS),
        rounds={ROLLOUT: [work] * num_rounds},
        settings=drafting(scheme, MOST_DRAFTS, rule=_RULE, profile=profile),
        dtype=stand.dtype,
        is_compiled=stand.is_gpu,
    )
    try:
        rounds = run_plan(
            plan,
            lambda name, arm, done: say(f"{shape}, {name}: {arm.name} {done.seconds:.2f} s"),
            partial(stand.start_measured, spoiled_share=1.0 - accepted),
        )[ROLLOUT]
    finally:
        end_engine()
    arms = summarize(rounds, is_greedy=False)
    measured: Measured = {"response_tokens": arms[PLAIN]["rounds"][0]["response_tokens"]}
    for name, arm in arms.items():
        measured[name] = {"seconds": arm["seconds"], "speedup": arm["speedup"]}
        if name != PLAIN:
            measured[name]["acceptance_rates"] = [done.metrics.get(ACCEPTANCE_RATE) for done in rounds[name]]
            measured[name]["seconds_by_draft_tokens"] = [row["seconds_by_draft_tokens"] for row in arm["rounds"]]
    return measured


def _needed_bytes(model: str, work: list[Request]) -> int:
    """Return the bytes of both engines: 16-bit weights twice, the drafter's in 8 bits at most, and KV twice."""
    shape = read_model_shape(model)
    kv_bytes = sum(request.num_tokens for request in work) * shape.kv_bytes("bfloat16")
    return int(2.5 * shape.weight_bytes("bfloat16") + 2 * kv_bytes + 2 * _SPARE_BYTES)
