"""Have an engine answer, and tell whether two engines answered alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from efficient_rollout.controller.rule import PATTERN
from efficient_rollout.gpu_check.stand import CheckFailed, Measured, Stand

# Two engines' log-probabilities of one token may differ by this much, and a tie by twice that falls either way. Passes
# over other numbers of rows add in other orders; a tiny policy's largest logits are of order 4 to 8, whose bfloat16
# neighbours are 2**-5 apart: four of these, so that no right build fails. What reads a wrong place is off by ones.
ROUNDING = {"float32": 2e-4, "float16": 2.0**-6, "bfloat16": 2.0**-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Describes one request.

    Attributes:
        prompt: Token ids.
        seed: Of its noise.
        temperature: 0 is greedy.
        ends: Tokens that end an answer; without any it has all tokens that are asked for.
    """

    prompt: tuple[int, ...]
    seed: int
    temperature: float = 1.0
    ends: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """Holds what an engine said.

    Attributes:
        tokens: Token ids.
        logprobs: float32 [tokens, vocab], the policy's; None where they were not asked for.
    """

    tokens: list[int]
    logprobs: torch.Tensor | None


def questions(stand: Stand, temperature: float) -> list[Question]:
    """Make questions, with prompts of different lengths."""
    sizes = stand.sizes
    prompts = [
        tuple((7 * number + 3 * place) % sizes.vocabulary for place in range(5 + 7 * number))
        for number in range(sizes.num_requests)
    ]
    return [Question(prompt=prompt, seed=100 + i, temperature=temperature) for i, prompt in enumerate(prompts)]


def ask(
    engine: Any,
    asked: Sequence[Question],
    num_tokens: int,
    *,
    drafts: Sequence[int] = (0,),
    tells_logprobs: bool = False,
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
    """Compare tokens, up to the first position at which two tokens are tied.

    Args:
        stand: Its dtype decides how near to each other two tokens must be.
        where: For the message.
        asked: The questions.
        expected: Answers with log-probabilities.
        found: Of another engine.

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
        pairs = zip(theirs.tokens, ours.tokens, strict=True)
        place = next((i for i, (their, our) in enumerate(pairs) if their != our))
        num_tokens += place
        assert theirs.logprobs is not None
        if not _is_tie(stand, question, theirs.logprobs[place], place, theirs.tokens[place], ours.tokens[place], limit):
            their, our = (float(theirs.logprobs[place, each.tokens[place]]) for each in (theirs, ours))
            raise CheckFailed(
                "tokens",
                where=f"{where}, request {number} at temperature {question.temperature:g}, token {place}",
                expected=f"{theirs.tokens[place]} (log-probability {their:.5f})",
                found=f"{ours.tokens[place]} ({our:.5f}), which no rounding of {limit:g} explains",
            )
        num_ties += 1
    return {"tokens": num_tokens, "ties": num_ties}


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
    """Draw what vLLM draws from log-probabilities [n, vocab] at places of an answer.

    It draws with the noise that belongs there.
    """
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
