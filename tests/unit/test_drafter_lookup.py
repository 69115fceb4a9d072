"""Copies are what came behind the place that reads most like the end of a text, found as a plain search finds them."""

import numpy as np
import pytest

from efficient_rollout.drafter.lookup import MOST_MATCHING_TOKENS, find_copies


def found(text, most=3):
    copies, length = find_copies(np.array(text, dtype=np.int32), most)
    return copies.tolist(), length


def searched(text, most):
    """The same by definition: every place, its match token by token."""
    newest, best = len(text) - 1, (0, -1)
    for place in range(newest):
        length = 0
        while length <= place and length < MOST_MATCHING_TOKENS and text[place - length] == text[newest - length]:
            length += 1
        if length:
            best = max(best, (length, place))
    length, place = best
    if not length:
        return [], 0
    copies = list(text)
    for step in range(most):
        copies.append(copies[place + 1 + step])
    return copies[len(text) :], length


@pytest.mark.parametrize("num_words", [2, 4, 30])
def test_copies_are_those_of_a_plain_search(num_words):
    random = np.random.default_rng(num_words)
    for size in range(1, 120):
        text = random.integers(0, num_words, size).tolist()
        assert found(text, 5) == searched(text, 5), text


def test_the_longest_match_counts_and_of_those_the_latest():
    assert found([1, 2, 3, 8, 8, 8, 5, 2, 3, 9, 9, 9, 1, 2, 3]) == ([8, 8, 8], 3)
    assert found([2, 3, 8, 8, 8, 2, 3, 9, 9, 9, 2, 3]) == ([9, 9, 9], 2)


def test_a_text_that_repeats_goes_on_repeating():
    assert found([7] * 5, 4) == ([7] * 4, 4)
    assert found([5, 1, 2, 3, 1, 2, 3], 7) == ([1, 2, 3, 1, 2, 3, 1], 3)


@pytest.mark.parametrize("text", [[4], [1, 2, 3, 4]])
def test_nothing_is_copied_where_the_last_token_is_new(text):
    assert found(text) == ([], 0)


def test_a_long_text_of_one_token_is_looked_through_no_further_than_needed():
    assert found([3] * 32768, 7) == ([3] * 7, MOST_MATCHING_TOKENS)


def test_ids_that_no_vocabulary_has_are_numbers_like_others():
    largest = np.iinfo(np.int32).max
    assert found([largest, -1, 5, largest, -1], 1) == ([5], 2)
