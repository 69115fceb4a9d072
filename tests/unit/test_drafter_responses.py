"""What is kept of ended responses is found by its prompt, and bounded."""

import numpy as np
import pytest

from efficient_rollout.drafter.chains import find_copies
from efficient_rollout.drafter.responses import EndedResponses


def tokens(*values):
    return np.array(values, dtype=np.int32)


def test_a_response_is_found_by_its_prompt_alone():
    kept = EndedResponses()
    kept.add(tokens(1, 2), tokens(7, 8))
    kept.add(tokens(1, 3), tokens(9))
    assert [text.tolist() for text in kept.texts(tokens(1, 2))] == [[1, 2, 7, 8]]
    assert kept.texts(tokens(2)) == []


def test_the_first_tokens_of_a_response_are_copied_behind_its_prompt():
    kept, prompt = EndedResponses(), tokens(*range(100))
    kept.add(prompt, tokens(7, 8, 9))
    copies, length = find_copies(np.concatenate([*kept.texts(prompt), prompt]), 3)
    assert (copies.tolist(), length) == ([7, 8, 9], 16)


def test_a_prompt_s_oldest_responses_go_first_and_prompts_unheard_of_for_longest():
    kept = EndedResponses(most_tokens=20, most_tokens_of_a_prompt=9)
    for first in range(4):
        kept.add(tokens(1), tokens(first, 0))
    assert [text[1] for text in kept.texts(tokens(1))] == [1, 2, 3]
    kept.add(tokens(2), tokens(5, 5, 5, 5, 5))
    kept.add(tokens(1), tokens(9, 9))
    kept.add(tokens(3), tokens(6, 6, 6, 6, 6))
    assert kept.texts(tokens(2)) == []
    assert len(kept.texts(tokens(1))) == 3
    assert kept.num_tokens == 9 + 6


@pytest.mark.parametrize("response", [tokens(), tokens(*range(50))])
def test_nothing_is_kept_of_a_response_that_is_empty_or_too_long(response):
    kept = EndedResponses(most_tokens_of_a_prompt=40)
    kept.add(tokens(1), response)
    assert kept.texts(tokens(1)) == []
    assert kept.num_tokens == 0


def test_memory_is_bounded_whatever_comes():
    kept, random = EndedResponses(most_tokens=500, most_tokens_of_a_prompt=120), np.random.default_rng(0)
    for _ in range(2000):
        kept.add(
            random.integers(0, 3, 2).astype(np.int32), random.integers(0, 9, random.integers(0, 150)).astype(np.int32)
        )
        assert kept.num_tokens <= 500
    held = [text for prompt in np.ndindex(3, 3) for text in kept.texts(tokens(*prompt))]
    assert sum(map(len, held)) == kept.num_tokens
