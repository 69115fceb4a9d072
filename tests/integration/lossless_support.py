"""What every test of losslessness draws from an engine, and compares."""

from contextlib import contextmanager
from dataclasses import dataclass

import engine_support
import numpy as np
import torch
from scripted_engine import PATTERN

from efficient_rollout.drafter.cpu.native.library import native_missing

OFF, ON, TOGGLING = [0], [4], [4, 0, 0, 2, 1, 0, 3]

# One false alarm in a thousand runs of a condition; a 2 % shift of mass is seen nearly always.
FALSE_ALARM_RATE = 1e-3
NUM_SAMPLES = 8192
SHIFT = 0.02

PROMPT = [5, 7, 9, 11]
# Longer than two blocks of the KV cache, so that an attention window leaves something out.
LONG_PROMPT = [3 + (7 * i) % 120 for i in range(70)]
GREEDY_PROMPTS = [[3 + i, 40 + 2 * i, 100 - i, 17] * (1 + i % 3) for i in range(12)] + [LONG_PROMPT, LONG_PROMPT[3:]]
BLOCK_SIZE = 32
# Log-probabilities of one token from passes over other numbers of rows: float32 rounding.
ROUNDING = 2e-4

# vLLM's own kernels stand in the weight-sync and shared-cache tests; where these can run, they are compared with stock.
KERNEL = "auto" if native_missing() else "native"
# The coarsest scheme: the more drafts are rejected, the more a fault of verifying would show.
COARSEST = {"scheme": "int4", "group_size": 128}
DRAFTERS = {
    "int8": {"scheme": "int8"},
    "int4-32": {"scheme": "int4", "group_size": 32},
    "output-head-of-the-policy": {**COARSEST, "quantize_output_head": False},
    "window": {**COARSEST, "attention_window_tokens": 8},
}


@contextmanager
def faulty_engine(policy, settings, **arguments):
    """An engine of its own processes with the coarsest drafter, whose ticks requests decide and which can be faulty."""
    controller = {"rule": "always", "max_draft_tokens": 4}
    with engine_support.running(
        policy,
        {"drafter": COARSEST, "controller": controller, **settings},
        scheduler_cls="scripted_engine.ScriptedScheduler",
        worker_cls="scripted_engine.FaultyWorker",
        block_size=BLOCK_SIZE,
        processes=True,
        **arguments,
    ) as engine:
        yield engine


@contextmanager
def drafting_with(engine, policy, drafter):
    """The engine's drafter made anew with other settings, and back afterwards."""
    engine.collective_rpc("use_drafter", args=(drafter, str(policy)))
    engine.reset_prefix_cache()
    yield
    engine.collective_rpc("use_drafter", args=(COARSEST, str(policy)))
    engine.reset_prefix_cache()


def facts(completions):
    """Tokens and their log-probabilities, to be compared bit for bit."""
    return [[(t, c.logprobs[i][t].logprob) for i, t in enumerate(c.token_ids)] for c in completions]


def greedy(engine, pattern):
    """Greedy completions of `GREEDY_PROMPTS`, with the two best log-probabilities of every token."""
    given = {"max_tokens": 48, "logprobs": 2, "extra_args": {PATTERN: pattern}}
    return [outputs[0] for outputs in engine_support.generate(engine, GREEDY_PROMPTS, **given)]


def sample_pairs(engine, sampling, extra, pattern, num_samples=NUM_SAMPLES, prompt=PROMPT, num_tokens=3):
    """Second and third tokens of many responses to one prompt."""
    (outputs,) = engine_support.generate(
        engine, [prompt], n=num_samples, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p,
        max_tokens=num_tokens, extra_args={PATTERN: pattern}, **extra,
    )  # fmt: skip
    return [tuple(output.token_ids[1:3]) for output in outputs]


def assert_equal(completions, stock_greedy):
    """Tokens are equal up to ties, and log-probabilities up to rounding."""
    engine_support.assert_equal(completions, stock_greedy, tie=ROUNDING, rounding=ROUNDING)


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters whose distribution is known exactly."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()

    def __call__(self, logits: torch.Tensor) -> np.ndarray:
        """Probabilities, float64 [batch, vocab], after bias, temperature, min-p, then top-k, then top-p, as in vLLM."""
        logits = logits.clone()
        for token, bias in self.bias:
            logits[:, token] += bias
        probabilities = (logits / self.temperature).softmax(-1).numpy()
        probabilities[probabilities < self.min_p * probabilities.max(axis=1, keepdims=True)] = 0
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        order = np.argsort(-probabilities, axis=1)
        ranked = np.take_along_axis(probabilities, order, axis=1)
        if self.top_k:
            ranked[:, self.top_k :] = 0
            ranked /= ranked.sum(axis=1, keepdims=True)
        before = np.cumsum(ranked, axis=1) - ranked
        ranked[before >= self.top_p] = 0
        ranked /= ranked.sum(axis=1, keepdims=True)
        np.put_along_axis(probabilities, order, ranked, axis=1)
        return probabilities
