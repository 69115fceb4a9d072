"""Training batches: worked answers of similar length, a fixed token budget each, reproducible by index."""

import random
from functools import lru_cache

import torch

from efficient_rollout.tasks.arithmetic import Level, Problem, take
from efficient_rollout.tasks.tokenizer import EOS, prompt_tokens, vocabulary
from efficient_rollout.tasks.training_plans import Schedule

IGNORED = -100
"""Label of a position that is not trained on, as transformers' losses expect."""

_POOL_PROBLEMS = 4096


class WorkedAnswerBatches:
    """Holds batches. Item i is a whole one; it depends on the arguments and i alone, so it is the same in every run.

    Problems are drawn in pools, sorted by length within a pool, and cut where a batch would exceed its budget: little
    padding, and every batch costs about the same.

    Args:
        level: Difficulty; problems come from its training split.
        schedule: Says how many tokens a batch has, and which batches are easy.
        seed: Of the problems.
    """

    def __init__(self, level: Level, schedule: Schedule, seed: int) -> None:
        self._level = level
        self._easy_level = level.capped(schedule.easy_response_tokens)
        self._schedule = schedule
        self._seed = seed
        self._token_ids = {token: index for index, token in enumerate(vocabulary())}

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return batch `index`: `input_ids` and `labels`, each (problems, tokens), int64.

        Padding is on the right, where causal attention never looks back at it, so no attention mask is needed.
        """
        easy = index < self._schedule.easy_steps
        level = self._easy_level if easy else self._level
        first_pool = self._pool(level, 0)
        pool_index, position = divmod(index, len(first_pool))
        pool = self._pool(level, pool_index)  # pools differ a little in length: a longer one's surplus is not used
        return self._collate(pool[position % len(pool)])

    @lru_cache(maxsize=3)  # noqa: B019 - lives as long as the training run
    def _pool(self, level: Level, pool_index: int) -> list[list[Problem]]:
        problems = take(level, "train", self._seed * 1_000_003 + pool_index, _POOL_PROBLEMS)
        problems.sort(key=_sequence_tokens)
        batches: list[list[Problem]] = [[]]
        for problem in problems:
            if (len(batches[-1]) + 1) * _sequence_tokens(problem) > self._schedule.batch_tokens:
                batches.append([])
            batches[-1].append(problem)
        random.Random(pool_index).shuffle(batches)
        return batches

    def _encode(self, tokens: list[str]) -> list[int]:
        return [self._token_ids[token] for token in tokens]

    def _collate(self, problems: list[Problem]) -> dict[str, torch.Tensor]:
        width = max(map(_sequence_tokens, problems))
        input_ids = torch.zeros(len(problems), width, dtype=torch.long)
        labels = torch.full_like(input_ids, IGNORED)
        for row, problem in enumerate(problems):
            prompt = self._encode(prompt_tokens(problem.question))
            response = self._encode([*problem.worked_answer, EOS])
            end = len(prompt) + len(response)
            input_ids[row, :end] = torch.tensor(prompt + response)
            labels[row, len(prompt) : end] = torch.tensor(response)
        return {"input_ids": input_ids, "labels": labels}


def _sequence_tokens(problem: Problem) -> int:
    return len(prompt_tokens(problem.question)) + problem.num_response_tokens
