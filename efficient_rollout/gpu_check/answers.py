"""Have an engine answer, and tell whether two engines answered alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from efficient_rollout.controller.script import PATTERN
from efficient_rollout.gpu_check.stand import Measured, Stand, require

# Two engines' log-probabilities of one token may differ by this much, and a tie by twice that falls either way. Passes
# over other numbers of rows add in other orders; a tiny policy's largest logits are of order 4 to 8, whose bfloat16
# neighbours are 2**-5 apart: four of these, so that no right build fails. What reads a wrong place is off by ones.
ROUNDING = {"float32": 2e-4, "float16": 2.0**-6, "bfloat16": 2.0**-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Describes one request."""

    prompt: tuple[int, ...]  # token ids
    seed: int  # of its noise
    temperature: float = 1.0  # 0 is greedy
    ends: tuple[int, ...] = ()  # tokens that end an answer; without any it has all tokens that are asked for


@dataclass(frozen=True, slots=True)
class Answer:
    """Holds what an engine said."""

    tokens: list[int]
    logprobs: torch.Tensor | None  # float32 [tokens, vocab], the policy's; None where they were not asked for


def questions(stand: Stand, temperatures: Sequence[float]) -> list[Question]:
    """Make questions, with prompts of different lengths, each at every temperature."""
    prompts = [
        tuple((7 * number + 3 * place) % stand.sizes.vocabulary for place in range(5 + 7 * number))
        for number in range(stand.sizes.num_requests)
    ]
    return [
        Question(prompt=prompt, seed=100 + number, temperature=temperature)
        for temperature in temperatures
        for number, prompt in enumerate(prompts)
    ]


def ask(
    engine: Any, asked: Sequence[Question], num_tokens: int, *, drafts: Sequence[int], tells_logprobs: bool = False
) -> list[Answer]:
    """Ask for answers of so many tokens, at most.

    Args:
        engine: In this process.
        asked: At once.
        num_tokens: Of each answer.
        drafts: Draft tokens, tick by tick, cyclically; stock engines pay no heed.
        tells_logprobs: Of every word, at every position.
    """
    from vllm import SamplingParams

    parameters = [
        SamplingParams(
            temperature=question.temperature,
            seed=question.seed,
            max_tokens=num_tokens,
            ignore_eos=not question.ends,
            stop_token_ids=list(question.ends),
            detokenize=False,
            logprobs=-1 if tells_logprobs else None,
            extra_args={PATTERN: list(drafts)},
        )
        for question in asked
    ]
    prompts = [{"prompt_token_ids": list(question.prompt)} for question in asked]
    outputs = engine.generate(prompts, parameters, use_tqdm=False)
    responses = [output.outputs[0] for output in outputs]
    return [Answer(list(r.token_ids), _table(r.logprobs) if tells_logprobs else None) for r in responses]


def _table(logprobs: Any) -> torch.Tensor:
    return torch.tensor([[at[token].logprob for token in range(len(at))] for at in logprobs])


def drafted_and_accepted(engine: Any) -> tuple[list[int], list[int]]:
    """Return how many drafts were verified since the last call, by position, and how many were the policy's own draws.

    Those behind a response's end, which no request gained, say as much of the drafter as others.
    """
    (stats,) = engine.collective_rpc("take_rollout_stats")
    stood = zip(stats["accepted_per_position"], stats["behind_end_per_position"], strict=True)
    return stats["drafted_per_position"], list(map(sum, stood))


def compare(
    stand: Stand, where: str, asked: Sequence[Question], expected: Sequence[Answer], found: Sequence[Answer]
) -> Measured:
    """Compare tokens with those of answers with log-probabilities, up to the first place at which two are tied.

    The stand's dtype decides how near to each other these must be.

    Returns:
        Tokens that were compared, and answers that part at a tie.

    Raises:
        CheckFailed: Two answers part where the first engine's probabilities, and its noise, leave no doubt.
    """
    num_tokens = num_ties = 0
    limit = 2 * ROUNDING[stand.dtype]
    for number, (question, theirs, ours) in enumerate(zip(asked, expected, found, strict=True)):
        if theirs.tokens == ours.tokens:
            num_tokens += len(theirs.tokens)
            continue
        pairs = enumerate(zip(theirs.tokens, ours.tokens, strict=True))
        place, their, our = next((place, their, our) for place, (their, our) in pairs if their != our)
        logprobs = theirs.logprobs[place]
        require(
            _is_tie(stand, question, logprobs, place, their, our, limit),
            "tokens",
            f"{where}, request {number} at temperature {question.temperature:g}, token {place}",
            f"{their} (log-probability {logprobs[their]:.5f})",
            f"{our} ({logprobs[our]:.5f}), which no rounding of {limit:g} explains",
        )
        num_tokens += place
        num_ties += 1
    return {"tokens": num_tokens, "ties": num_ties}


def added(measured: Measured, result: Measured) -> Measured:
    """Return what was measured so far, with the tokens and ties of one more `compare` added."""
    return measured | {key: measured.get(key, 0) + result[key] for key in ("tokens", "ties")}


def _is_tie(
    stand: Stand, question: Question, logprobs: torch.Tensor, place: int, their: int, our: int, limit: float
) -> bool:
    """Tell whether our token would have been drawn, had its log-probability been larger by the limit."""
    if question.temperature == 0.0:
        return float(logprobs[their] - logprobs[our]) <= limit
    raised = logprobs.clone()
    raised[our] += limit
    drawn, drawn_then = redrawn(stand, question, torch.stack([logprobs, raised]), [place, place])
    return drawn in (their, our) and drawn_then == our


def redrawn(stand: Stand, question: Question, logprobs: torch.Tensor, places: Sequence[int]) -> list[int]:
    """Draw what vLLM draws from log-probabilities [n, vocab] at places of an answer, with the noise of those."""
    from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

    n, device = len(places), stand.device
    last_positions = [len(question.prompt) + place - 1 for place in places]
    drawn = gumbel_sample(
        logprobs.to(device).contiguous(),
        torch.zeros(n, dtype=torch.int32, device=device),
        torch.tensor([question.temperature], dtype=torch.float32, device=device),
        torch.tensor([question.seed], dtype=torch.int64, device=device),
        torch.tensor(last_positions, dtype=torch.int64, device=device),
        apply_temperature=True,
        is_drafting=False,
    )
    return drawn.tolist()
