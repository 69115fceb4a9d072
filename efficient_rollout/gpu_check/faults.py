"""Step "faults": a drafter that raises costs no token, and drafts again after the next weight sync."""

import itertools
from typing import Any

import torch

from efficient_rollout.gpu_check.answers import ask, compare, drafted_and_accepted, questions
from efficient_rollout.gpu_check.policies import make_policy
from efficient_rollout.gpu_check.samples import EVERY_LENGTH, MOST_DRAFTS
from efficient_rollout.gpu_check.stand import Measured, Stand, drafting, require, runnable_schemes, worker_of

_MESSAGE = "gpu-check lets this draft fail"
_GOOD_STEPS = 2


def check_faults(stand: Stand) -> Measured:
    """Check that tokens stay the same with a drafter whose third step fails.

    It runs without graphs: those are replayed, and call nothing.
    """
    policy, asked = make_policy(stand.folder, "qwen3", stand.sizes), questions(stand, 1.0)
    with stand.engine(policy, drafting(runnable_schemes()[0], MOST_DRAFTS)) as engine:
        expected = ask(engine, asked, stand.sizes.num_tokens, drafts=EVERY_LENGTH, tells_logprobs=True)
        engine.collective_rpc("take_rollout_stats")
        worker = worker_of(engine)
        drafter = worker.self_drafter
        _let_fail(drafter.model)
        found = ask(engine, asked, stand.sizes.num_tokens, drafts=EVERY_LENGTH)
        measured = compare(stand, "a drafter that fails", asked, expected, found)
        (stats,) = engine.collective_rpc("take_rollout_stats")
        fault = worker.health.drafter_fault or "none"
        require(_MESSAGE in fault, "the drafter's fault", where="the worker", expected=_MESSAGE, found=fault)
        faults = stats["num_drafter_faults"]
        require(faults == 1, "faults in the statistics", where="the worker", expected=1, found=faults)

        del drafter.model.compute_logits
        engine.collective_rpc("reload_weights", kwargs={"weights_path": str(policy)})
        fault = worker.health.drafter_fault
        require(fault is None, "fault after a weight sync", where="the worker", expected=None, found=fault)
        found = ask(engine, asked, stand.sizes.num_tokens, drafts=EVERY_LENGTH)
        compare(stand, "after the weight sync", asked, expected, found)
        drafted, accepted = drafted_and_accepted(engine)
        require(sum(accepted) > 0, "accepted drafts", where="after the weight sync", expected="some", found=drafted)
    return {"faults": faults, **measured}


def _let_fail(model: Any) -> None:
    """Let the object's own method fail; it stands before the class's, and is to be deleted there."""
    stock, calls = model.compute_logits, itertools.count()

    def compute_logits(hidden: torch.Tensor) -> torch.Tensor:
        if next(calls) == _GOOD_STEPS:
            raise RuntimeError(_MESSAGE)
        logits: torch.Tensor = stock(hidden)
        return logits

    model.compute_logits = compute_logits
