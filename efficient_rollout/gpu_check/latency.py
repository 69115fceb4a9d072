"""Step "latency": a latency profile, and seconds of requantizing, at the shapes of published policies.

Weights are random, so nothing is said of acceptance: it is stated, and the speed-up it would give computed.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from efficient_rollout.controller.cli import explain
from efficient_rollout.cost_model.profile import Profile, save_profile
from efficient_rollout.gpu_check.policies import make_shape
from efficient_rollout.gpu_check.stand import Measured, Stand, drafting, median_seconds, runnable_schemes, worker_of
from efficient_rollout.measuring.probe import ProbeSettings, calibrate_engine
from efficient_rollout.provenance import provenance

_ACCEPTANCES = (0.7, 0.8, 0.9)
_SHOWN_BATCHES, _SHOWN_CONTEXT = (1, 8, 32, 128), 1024
MOST_DRAFTS = 8
# Elsewhere than on a GPU: shows that the code runs.
_LEAST = ProbeSettings(batches=(1,), contexts=(8,), lengths=(1, 2), max_points=12, seconds=1.0, dtype="float32")


def check_latency(stand: Stand) -> Measured:
    """Measure by shape and scheme; the profiles are files, for rules that need one."""
    return {
        f"{shape}-{scheme}": _measure(stand, shape, scheme)
        for shape in stand.shapes
        for scheme in runnable_schemes()[: stand.sizes.most_schemes]
    }


def profile_path(folder: Path, shape: str, scheme: str) -> Path:
    """Return where this step leaves the profile of a shape."""
    return folder / "profiles" / f"{shape}-{scheme}.json"


def _measure(stand: Stand, shape: str, scheme: str) -> Measured:
    probe = _LEAST
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
        "tick_ms": {str(k): round(1000 * seconds, 4) for k, seconds in told[_ACCEPTANCES[0]].tick_seconds.items()},
        "draft_step_ms": round(1000 * float(draft[0, 0]), 4),
        "draft_over_target": round(float(draft[0, 0] / plain[0]), 4),
        "speedup_at_acceptance": {
            f"{p:g}": {"speedup": round(best.speedup[best.choice], 3), "num_draft_tokens": best.choice}
            for p, best in told.items()
        },
    }


def _requantize(stand: Stand, engine: Any) -> Measured:
    """Show every layer to the drafter again, as a weight sync does behind its last tensor."""
    import torch
    from vllm.model_executor.model_loader.utils import process_weights_after_loading

    worker = worker_of(engine)
    model, config, device = worker.model_runner.get_model(), worker.model_config, torch.device(stand.device)
    with torch.inference_mode():
        seconds = median_seconds(stand, lambda: process_weights_after_loading(model, config, device))
    return {"requantize_s": round(seconds, 5), "drafter_bytes": worker.self_drafter.packed.num_bytes}
