"""The exact distribution of a policy's second and third response token, and a chi-squared test against it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

NUM_CELLS = 8


@dataclass(frozen=True)
class Sampling:
    """Holds sampling parameters whose distribution is known exactly."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()


def joint_of_second_and_third(model: Path, prompt: list[int], sampling: Sampling) -> np.ndarray:
    """Compute P(t2, t3), the first token summed over, float64 [vocab, vocab].

    The first token comes from the prefill; the second is the first that a drafter can have drafted.
    """
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    vocab = policy.config.vocab_size
    first = next_token_probabilities(policy, torch.tensor([prompt]), sampling)[0]
    tokens = torch.arange(vocab)
    second = next_token_probabilities(policy, _extend(prompt, tokens.unsqueeze(1)), sampling)
    joint = np.zeros((vocab, vocab))
    for token in range(vocab):
        if first[token] > 0:
            pairs = torch.stack([torch.full_like(tokens, token), tokens], dim=1)
            third = next_token_probabilities(policy, _extend(prompt, pairs), sampling)
            joint += first[token] * second[token][:, None] * third
    return joint


def _extend(prompt: list[int], continuations: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.tensor([prompt]).expand(len(continuations), -1), continuations], dim=1)


@torch.no_grad()
def next_token_probabilities(policy: Any, token_ids: torch.Tensor, sampling: Sampling) -> np.ndarray:
    """Return float64 [batch, vocab] after bias, temperature, min-p, then top-k, then top-p.

    That is the order of vLLM.
    """
    logits = policy(token_ids).logits[:, -1].double()
    for token, bias in sampling.bias:
        logits[:, token] += bias
    probabilities = (logits / sampling.temperature).softmax(-1).numpy()
    probabilities[probabilities < sampling.min_p * probabilities.max(axis=1, keepdims=True)] = 0
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1)
    ranked = np.take_along_axis(probabilities, order, axis=1)
    if sampling.top_k:
        ranked[:, sampling.top_k :] = 0
        ranked /= ranked.sum(axis=1, keepdims=True)
    before = np.cumsum(ranked, axis=1) - ranked
    ranked[before >= sampling.top_p] = 0
    ranked /= ranked.sum(axis=1, keepdims=True)
    np.put_along_axis(probabilities, order, ranked, axis=1)
    return probabilities


def cells_of_equal_mass(joint: np.ndarray) -> np.ndarray:
    """Return the number of the cell of each (t2, t3).

    Pairs are put in order of probability, and cut into cells of about equal mass.

    Faults of acceptance move mass between likely and unlikely tokens, which these cells tell apart best.
    """
    order = np.argsort(-joint, axis=None)
    middle = np.cumsum(joint.ravel()[order]) - joint.ravel()[order] / 2
    cells = np.empty(joint.size, dtype=np.int64)
    cells[order] = np.minimum((middle * NUM_CELLS).astype(np.int64), NUM_CELLS - 1)
    return cells.reshape(joint.shape)


def p_value(pairs: Iterable[tuple[int, int]], joint: np.ndarray) -> float:
    """Return the probability of a fit as bad as that of these samples, were they drawn from `joint`.

    A pair that `joint` excludes gives 0.
    """
    drawn = np.asarray(list(pairs))
    if (joint[drawn[:, 0], drawn[:, 1]] == 0).any():
        return 0.0
    cells = cells_of_equal_mass(joint)
    expected = np.bincount(cells.ravel(), weights=joint.ravel(), minlength=NUM_CELLS)
    observed = np.bincount(cells[drawn[:, 0], drawn[:, 1]], minlength=NUM_CELLS)
    used = expected > 0
    return float(stats.chisquare(observed[used], expected[used] * len(drawn)).pvalue)


def smallest_power(joint: np.ndarray, num_samples: int, shift: float, false_alarm_rate: float) -> float:
    """Return the chance of an alarm when `shift` of the mass moves from any one cell to any other.

    It is the chance of the worst such pair.
    """
    cells = cells_of_equal_mass(joint)
    expected = np.bincount(cells.ravel(), weights=joint.ravel(), minlength=NUM_CELLS)
    expected = expected[expected > 0]
    largest, second = np.sort(expected)[::-1][:2]
    noncentrality = num_samples * shift**2 * (1 / largest + 1 / second)
    threshold = stats.chi2.isf(false_alarm_rate, len(expected) - 1)
    return float(stats.ncx2.sf(threshold, len(expected) - 1, noncentrality))
