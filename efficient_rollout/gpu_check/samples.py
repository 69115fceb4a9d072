"""Step "same-samples": an engine that drafts emits the tokens of stock vLLM, and a perfect drafter is believed.

Other steps have engines answer, and tell whether two answered alike, as this one does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

from efficient_rollout.controller.rule import PATTERN
from efficient_rollout.gpu_check.stand import Measured, Stand, drafting, require, runnable_schemes, worker_of
from efficient_rollout.gpu_check.weights import make_policy

MOST_DRAFTS = 3
# Every number, zero among them, longer and shorter ones in a row.
EVERY_LENGTH = (3, 0, 1, 2, 3, 3, 0, 0, 2)
TEMPERATURES = (0.0, 1.0)
# Of the drafter, in turns.
LOOKUPS = ("off", "own")
# Of first drafts of the policy's own copy. In 16 bits it rounds otherwise than the verifier, which computes more rows
# at once, and a draw in some twenty may be that near to a tie. A drafter that reads a wrong position is far below.
_LEAST_ACCEPTED = {"float32": 1.0, "float16": 0.95, "bfloat16": 0.9}
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


Asked = tuple[list[Question], list[Answer]]


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


def check_same_samples(stand: Stand) -> Measured:
    """Check every architecture, one scheme each, greedy and with seeds, every other one with copies in draft passes.

    Then a drafter that is the policy itself is checked.
    """
    schemes = runnable_schemes()
    measured: Measured = {"redrawn": 0}
    for number, name in enumerate(stand.sizes.policies):
        policy, scheme = make_policy(stand.folder, name, stand.sizes), schemes[number % len(schemes)]
        plain = plain_answers(stand, policy, eager=True)
        measured["redrawn"] += _check_noise(stand, name, plain)
        result = check_drafting(stand, policy, scheme, plain, lookup=LOOKUPS[number % 2])
        measured = added(measured, result) | {f"{scheme}_accepted": result["accepted"]}
        if not number:
            measured["unquantized_accepted_first"] = check_perfect(stand, policy, plain)
    return measured


@cache
def plain_answers(stand: Stand, policy: Path, *, eager: bool) -> Asked:
    """Return what stock vLLM answers, with its log-probabilities; asked once in a process."""
    with stand.engine(policy, enforce_eager=eager) as engine:
        require(engine.llm_engine.vllm_config.use_v2_model_runner, "vLLM's model runner", "a stock engine", "V2", "V1")
        return answers_of(stand, engine)


def answers_of(stand: Stand, engine: Any, temperatures: Sequence[float] = TEMPERATURES) -> Asked:
    """Ask an engine that others are compared with; one that drafts does so, another number at every tick."""
    asked = questions(stand, temperatures)
    return asked, ask(engine, asked, stand.sizes.num_tokens, drafts=EVERY_LENGTH, tells_logprobs=True)


def check_answers(stand: Stand, where: str, engine: Any, expected: Asked) -> Measured:
    """Compare with what another engine answered; this one drafts another number at every tick.

    Returns:
        Tokens compared, ties among them, and shares of drafts accepted: of all, and of first ones.

    Raises:
        CheckFailed: A token is another, or no draft was accepted.
    """
    asked, theirs = expected
    drafted_and_accepted(engine)
    measured = compare(stand, where, asked, theirs, ask(engine, asked, stand.sizes.num_tokens, drafts=EVERY_LENGTH))
    drafted, accepted = drafted_and_accepted(engine)
    require(len(drafted) == MOST_DRAFTS, "verified drafts", where, MOST_DRAFTS, drafted)
    require(sum(accepted) > 0, "accepted drafts", where, "some", accepted)
    shares = {"accepted": round(sum(accepted) / sum(drafted), 3), "accepted_first": round(accepted[0] / drafted[0], 4)}
    return measured | shares


def check_drafting(
    stand: Stand, policy: Path, scheme: str, plain: Asked, *, lookup: str = "off", eager: bool = True
) -> Measured:
    """Do as `check_answers` does with an engine of its own, whose graphs are checked too; with none where eager."""
    with stand.engine(policy, drafting(scheme, MOST_DRAFTS, lookup=lookup), enforce_eager=eager) as engine:
        if not eager:
            check_full_graphs(stand, engine)
        where = f"{policy.name}, lookup {lookup}, {scheme}, {'eager' if eager else 'graphs'}"
        return check_answers(stand, where, engine, plain)


def check_full_graphs(stand: Stand, engine: Any) -> int:
    """Check, on a GPU, that every batch of decoding has a full graph; return the number of such batches."""
    return check_dispatch(worker_of(engine).model_runner.cudagraph_manager, stand) if stand.is_gpu else 0


def check_dispatch(manager: Any, stand: Stand) -> int:
    """Check that every batch of decoding within the limit of captured tokens has a full graph.

    Returns:
        Batches that were asked for.
    """
    limit = manager.compilation_config.max_cudagraph_capture_size
    batches = [
        (num_reqs, query_len)
        for query_len in range(1, MOST_DRAFTS + 2)
        for num_reqs in range(1, stand.sizes.max_num_seqs + 1)
        if num_reqs * query_len <= limit
    ]
    for num_reqs, query_len in batches:
        mode = manager.dispatch(num_reqs, num_reqs * query_len, query_len, 0, max_query_len=query_len).cg_mode
        where = f"{num_reqs} requests with {query_len - 1} drafts"
        require(mode == CUDAGraphMode.FULL, "graph of a batch", where, "FULL", mode.name)
    return len(batches)


def check_perfect(stand: Stand, policy: Path, plain: Asked, *, eager: bool = True) -> float:
    """Check as `check_drafting` does with the policy itself as the drafter; return the share of its first drafts."""
    accepted: float = check_drafting(stand, policy, "unquantized", plain, eager=eager)["accepted_first"]
    least, where = _LEAST_ACCEPTED[stand.dtype], f"{policy.name}, {'eager' if eager else 'graphs'}"
    what = "accepted first drafts of an unquantized drafter"
    require(accepted >= least, what, where, f"{least} or more", accepted)
    return accepted


def _check_noise(stand: Stand, name: str, plain: Asked) -> int:
    """Check that noise belongs to a seed and a position: stock's tokens come again of its log-probabilities alone."""
    count = 0
    for question, answer in zip(*plain, strict=True):
        if question.temperature > 0.0:
            found = redrawn(stand, question, answer.logprobs, range(len(answer.tokens)))
            # A row whose best two scores float32 cannot tell apart is drawn either way.
            differ = sum(mine != theirs for mine, theirs in zip(found, answer.tokens, strict=True))
            require(differ <= 1, "tokens drawn again", name, answer.tokens, found)
            count += len(found)
    return count
