"""Step "distribution": the second and third token are drawn from the policy's exact distribution, whatever drafts.

Exact distributions, and the chi-squared test against them, serve the tests too.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from efficient_rollout.gpu_check.samples import Question, ask, drafted_and_accepted
from efficient_rollout.gpu_check.stand import Measured, Stand, drafting, require, runnable_schemes, worker_of
from efficient_rollout.gpu_check.weights import hashed, make_policy

NUM_CELLS = 8
# Fixed beforehand; one repeat, with other seeds, so that a million checks of a right build fail once.
LEAST_P = 1e-3
_SHIFT = 0.03  # of the mass between two cells: what the test is asked to notice
_PROMPT = (3, 14, 15, 9, 2, 6)
# The first token is of the prompt's pass; both of the following are drafted, or the third is not.
_DRAFTS = (2, 1)


def check_distribution(stand: Stand) -> Measured:
    """Check with a quantized drafter, and with one of other weights, which is mostly wrong."""
    policy, num_samples = make_policy(stand.folder, "qwen3", stand.sizes), stand.sizes.num_samples
    joint = joint_of_second_and_third(policy, list(_PROMPT))
    power = smallest_power(joint, num_samples, _SHIFT, LEAST_P)
    measured: Measured = {"samples": num_samples, "power": round(power, 3)}
    with stand.engine(policy, drafting(runnable_schemes()[0], max(_DRAFTS))) as engine:
        measured |= _check(engine, stand, joint, "quantized")
        for number, layer in enumerate(worker_of(engine).self_drafter.packed.layers.values()):
            weight = hashed((layer.out_features, layer.in_features), 500 + number) * 2.0**-9
            layer.requantize(weight.to(layer.dtype).to(stand.device), layer.bias)
        measured |= _check(engine, stand, joint, "wrong")
    return measured


def _check(engine: Any, stand: Stand, joint: np.ndarray, drafter: str) -> Measured:
    found: list[float] = []
    where = f"{drafter} drafter"
    drafted_and_accepted(engine)
    for first_seed in (0, stand.sizes.num_samples):
        found.append(p_value(_pairs(engine, first_seed, stand.sizes.num_samples), joint))
        if found[-1] > LEAST_P:
            break
    what = "p of the sampled distribution, and of its repeat"
    require(found[-1] > LEAST_P, what, where, f"above {LEAST_P:g}", found)
    drafted, accepted = drafted_and_accepted(engine)
    require(sum(drafted) > 0, "verified drafts", where, "some", drafted)
    return {f"{drafter}_p": round(found[-1], 4), f"{drafter}_accepted": round(sum(accepted) / sum(drafted), 3)}


def _pairs(engine: Any, first_seed: int, count: int) -> Iterator[tuple[int, int]]:
    asked = [Question(prompt=_PROMPT, seed=seed) for seed in range(first_seed, first_seed + count)]
    for answer in ask(engine, asked, 3, drafts=_DRAFTS):
        yield answer.tokens[1], answer.tokens[2]


def softmax(logits: torch.Tensor) -> np.ndarray:
    """Return the probabilities of tokens at temperature 1, from logits [batch, vocab], and of their dtype."""
    return logits.softmax(-1).numpy()


@torch.no_grad()
def joint_of_second_and_third(
    model: Path, prompt: list[int], probabilities: Callable[[torch.Tensor], np.ndarray] = softmax
) -> np.ndarray:
    """Compute P(t2, t3), the first token summed over, float64 [vocab, vocab].

    The first token comes from the prefill; the second is the first that a drafter can have drafted.

    Args:
        model: The policy's folder.
        prompt: Token ids.
        probabilities: Of the next token, from float64 logits [batch, vocab].
    """
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokens = torch.arange(policy.config.vocab_size)

    def behind(*columns: torch.Tensor) -> np.ndarray:
        texts = torch.stack([torch.full_like(columns[-1], token) for token in prompt] + list(columns), dim=1)
        return probabilities(policy(texts).logits[:, -1].double())

    first = probabilities(policy(torch.tensor([prompt])).logits[:, -1].double())[0]
    second = behind(tokens)
    joint = np.zeros((len(tokens), len(tokens)))
    for token in np.flatnonzero(first):
        joint += first[token] * second[token][:, None] * behind(torch.full_like(tokens, int(token)), tokens)
    return joint


def cells_of_equal_mass(joint: np.ndarray) -> np.ndarray:
    """Return the number of the cell of each (t2, t3): pairs in order of probability, cut into cells of equal mass.

    Faults of acceptance move mass between likely and unlikely tokens, which these cells tell apart best.
    """
    order = np.argsort(-joint, axis=None)
    middle = np.cumsum(joint.ravel()[order]) - joint.ravel()[order] / 2
    cells = np.empty(joint.size, dtype=np.int64)
    cells[order] = np.minimum((middle * NUM_CELLS).astype(np.int64), NUM_CELLS - 1)
    return cells.reshape(joint.shape)


def _mass(cells: np.ndarray, joint: np.ndarray) -> np.ndarray:
    return np.bincount(cells.ravel(), weights=joint.ravel(), minlength=NUM_CELLS)


def p_value(pairs: Iterable[tuple[int, int]], joint: np.ndarray) -> float:
    """Return the probability of a fit as bad as that of these samples, were they drawn from `joint`.

    A pair that `joint` excludes gives 0.
    """
    drawn = np.asarray(list(pairs))
    if (joint[drawn[:, 0], drawn[:, 1]] == 0).any():
        return 0.0
    cells = cells_of_equal_mass(joint)
    expected, observed = _mass(cells, joint), np.bincount(cells[drawn[:, 0], drawn[:, 1]], minlength=NUM_CELLS)
    used = expected > 0
    return float(stats.chisquare(observed[used], expected[used] * len(drawn)).pvalue)


def smallest_power(joint: np.ndarray, num_samples: int, shift: float, false_alarm_rate: float) -> float:
    """Return the chance of an alarm when `shift` of the mass moves from one cell to another: of the worst such pair."""
    expected = _mass(cells_of_equal_mass(joint), joint)
    expected = expected[expected > 0]
    largest, second = np.sort(expected)[::-1][:2]
    noncentrality = num_samples * shift**2 * (1 / largest + 1 / second)
    threshold = stats.chi2.isf(false_alarm_rate, len(expected) - 1)
    return float(stats.ncx2.sf(threshold, len(expected) - 1, noncentrality))
