"""The arithmetic task's reward with OpenRLHF's signature: give this file to it as `--reward.remote_url`."""

from collections.abc import Sequence

import torch

from efficient_rollout.tasks.arithmetic import DATA_SOURCE
from efficient_rollout.tasks.reward import compute_score

# OpenRLHF decodes a response with its special tokens.
_ENDS = ("<|endoftext|>", "<|im_end|>", "</s>")


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str]) -> dict[str, object]:
    """Score the responses behind the prompts in `queries` by the rule of `compute_score`.

    Returns:
        `rewards` and `scores`, float32 tensors of shape (responses,), and under `extra_logs` whether each response
        ends with a complete answer.
    """
    scores = []
    for query, prompt, label in zip(queries, prompts, labels, strict=True):
        response = query[len(prompt) :]
        for end in _ENDS:
            response = response.removesuffix(end)
        scores.append(compute_score(DATA_SOURCE, response, label))
    rewards = torch.tensor([score["score"] for score in scores])
    well_formed = torch.tensor([score["well_formed"] for score in scores])
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"well_formed": well_formed}}
