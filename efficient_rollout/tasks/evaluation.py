"""How well a policy does the task: sampled answers to validation problems, at temperature 1."""

import statistics
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from efficient_rollout.tasks.arithmetic import DATA_SOURCE, Level, Problem, take
from efficient_rollout.tasks.reward import compute_score
from efficient_rollout.tasks.tokenizer import prompt_tokens

_BATCH_TOKENS = 16384


@dataclass(frozen=True, slots=True)
class Measurement:
    """Holds sampled performance on validation problems. Lengths are in tokens, the end-of-sequence token included.

    Attributes:
        accuracy: Share of right final answers.
        well_formed: Share of responses with a complete final answer, right or wrong.
        truncated: Share of responses that hit the length limit.
    """

    num_problems: int
    accuracy: float
    well_formed: float
    truncated: float
    length_mean: float
    length_median: float
    length_p90: float
    length_p99: float
    length_max: int


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    level: Level,
    num_problems: int,
    *,
    seed: int = 0,
) -> Measurement:
    """Sample one response to each of `num_problems` validation problems and score them.

    A response may be half as long again as the longest worked answer among its batch's problems, and never longer than
    the level allows.

    Args:
        model: What is measured, with its `tokenizer`.
        level: Of the problems, `num_problems` of them.
        seed: Of the problems and the samples.
    """
    was_training = model.training
    model.eval()
    lengths: list[int] = []
    scores: list[dict[str, float]] = []
    num_truncated = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for batch, limit in _batches(take(level, "validation", seed, num_problems), level):
            for problem, response in zip(batch, _sample(model, tokenizer, batch, limit), strict=True):
                text = tokenizer.decode(response, skip_special_tokens=True)
                scores.append(compute_score(DATA_SOURCE, text, problem.answer))
                lengths.append(len(response))
                num_truncated += tokenizer.eos_token_id not in response
    model.train(was_training)
    return Measurement(
        num_problems=num_problems,
        accuracy=statistics.mean(score["acc"] for score in scores),
        well_formed=statistics.mean(score["well_formed"] for score in scores),
        truncated=num_truncated / num_problems,
        length_mean=statistics.mean(lengths),
        length_median=statistics.median(lengths),
        length_p90=statistics.quantiles(lengths, n=10)[-1],
        length_p99=statistics.quantiles(lengths, n=100, method="inclusive")[-1],
        length_max=max(lengths),
    )


def _batches(problems: list[Problem], level: Level) -> list[tuple[list[Problem], int]]:
    """Return problems of similar length together, and the length limit of their responses, in tokens.

    Long answers go in small batches: the cache of a batch is copied at every token.
    """
    batches: list[tuple[list[Problem], int]] = []
    for problem in sorted(problems, key=lambda problem: problem.num_response_tokens):
        limit = min(level.max_response_tokens, problem.num_response_tokens * 3 // 2 + 8)
        if batches and (len(batches[-1][0]) + 1) * limit <= _BATCH_TOKENS:
            batches[-1] = ([*batches[-1][0], problem], limit)
        else:
            batches.append(([problem], limit))
    return batches


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    max_new_tokens: int,
) -> list[list[int]]:
    """Sample one response per problem, up to and including the end-of-sequence token."""
    prompts = ["".join(prompt_tokens(problem.question)) for problem in problems]
    encoded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
    encoded = encoded.to(model.device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            max_new_tokens=max_new_tokens,
            use_cache=True,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
        )
    responses = output[:, encoded.input_ids.shape[1] :].tolist()
    return [_until_end(response, tokenizer.eos_token_id) for response in responses]


def _until_end(response: list[int], eos_token_id: int) -> list[int]:
    return response[: response.index(eos_token_id) + 1] if eos_token_id in response else response
