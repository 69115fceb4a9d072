"""Step "same-samples": an engine that drafts emits the tokens of stock vLLM, and a perfect drafter is believed."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vllm.config.compilation import CUDAGraphMode

from efficient_rollout.gpu_check.answers import (
    Answer,
    Question,
    added,
    ask,
    compare,
    drafted_and_accepted,
    questions,
    redrawn,
)
from efficient_rollout.gpu_check.policies import make_policy
from efficient_rollout.gpu_check.stand import Measured, Stand, drafting, require, runnable_schemes, worker_of

MOST_DRAFTS = 3
# Every number, zero among them, longer and shorter ones in a row.
EVERY_LENGTH = (3, 0, 1, 2, 3, 3, 0, 0, 2)
TEMPERATURES = (0.0, 1.0)
# Of the drafter, in turns.
LOOKUPS = ("off", "own")
# Of first drafts of the policy's own copy. In 16 bits it rounds otherwise than the verifier, which computes more rows
# at once, and a draw in some twenty may be that near to a tie. A drafter that reads a wrong position is far below.
_LEAST_ACCEPTED = {"float32": 1.0, "float16": 0.95, "bfloat16": 0.9}


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


Asked = tuple[list[Question], list[Answer]]


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
