"""Whose drafts tell whether the drafter follows the policy, where a draft step follows the temperature alone."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm import SamplingParams

from efficient_rollout.engine.scheduler import follows


@pytest.mark.parametrize(
    "parameters", [{}, {"temperature": 0.0}, {"temperature": 0.3, "seed": 5}, {"stop_token_ids": [3], "logprobs": 1}]
)
def test_requests_with_a_temperature_alone_tell(parameters):
    assert follows(SamplingParams(**parameters))


@pytest.mark.parametrize(
    "parameters",
    [
        {"presence_penalty": 2.0}, {"frequency_penalty": 1.0}, {"repetition_penalty": 1.5}, {"logit_bias": {5: 50.0}},
        {"allowed_token_ids": [1]}, {"min_tokens": 5}, {"min_p": 0.3}, {"top_k": 2}, {"top_p": 0.1},
        {"bad_words": ["x"]},
    ],
)  # fmt: skip
def test_others_do_not(parameters):
    assert not follows(SamplingParams(**parameters))
