"""Chains hold the drafter's own draws, whatever copies were checked, and no more of them than were asked for.

Copies are what came behind the place that reads most like the end of a text, found as a plain search finds them.
"""

import numpy as np
import pytest

from efficient_rollout.controller.rule import DraftCounts
from efficient_rollout.drafter.chains import MOST_MATCHING_TOKENS, Chains, EndedResponses, find_copies


def drafter(text):
    """A token that depends on the three before it, so that texts repeat now and then."""
    return (sum(text[-3:]) * 7 + len(text) // 11) % 5


def drawn_alone(text, num_tokens):
    chain = list(text)
    for _ in range(num_tokens):
        chain.append(drafter(chain))
    return chain[len(text) :]


def chains_of(texts, most, num_tokens, **options):
    return Chains([int(text[-1]) for text in texts], texts.__getitem__, most, num_tokens, **options)


def grown(texts, most, num_tokens, max_copies=7):
    arrays = [np.array(text, dtype=np.int32) for text in texts]
    chains = chains_of(arrays, most, num_tokens, max_copies=max_copies, few_chains=8)
    passes = []
    while (fed := chains.feed()) is not None:
        drawn = []
        for request, tokens, place in zip(fed.requests, fed.tokens, fed.places, strict=True):
            before = [*texts[request], *chains.drafts[request]]
            assert place == len(chains.drafts[request])
            assert tokens[0] == before[-1]
            drawn += [drafter([*before, *tokens[1 : row + 1]]) for row in range(len(tokens))]
        chains.keep(fed, drawn)
        passes.append(fed)
    return chains, passes, chains.counts


TEXTS = [[1, 2, 3, 1, 2, 3, 1, 2], [4, 4, 4, 4], [0, 1, 2, 3, 4], [2]]


@pytest.mark.parametrize("max_copies", [0, 1, 3, 7])
@pytest.mark.parametrize("num_tokens", [1, 3, 8, 20, 32])
def test_a_chain_is_what_the_drafter_draws_token_by_token(max_copies, num_tokens):
    chains, passes, counts = grown(TEXTS, [8, 8, 8, 8], num_tokens, max_copies)
    for text, drafts in zip(TEXTS, chains.drafts, strict=True):
        assert drafts == drawn_alone(text, len(drafts))
    num_drafts = sum(map(len, chains.drafts))
    assert num_tokens - len(TEXTS) / 2 < num_drafts <= num_tokens
    assert counts.num_passes == len(passes)
    assert counts.num_copies == sum(len(tokens) - 1 for fed in passes for tokens in fed.tokens)
    assert counts.num_chains_fed == sum(len(fed.requests) for fed in passes)
    assert counts.num_copies_kept == num_drafts - counts.num_chains_fed


def test_a_text_that_repeats_is_drafted_in_one_pass():
    chains = chains_of([np.array([5, 6] * 6, dtype=np.int32)], [8], 8, max_copies=7)
    fed = chains.feed()
    assert fed.tokens == [[6, 5, 6, 5, 6, 5, 6, 5]]
    chains.keep(fed, [5, 6, 5, 6, 5, 6, 5, 6])
    assert chains.feed() is None
    assert chains.drafts == [[5, 6] * 4]
    assert chains.counts == DraftCounts(num_passes=1, num_chains_fed=1, num_copies=7, num_copies_kept=7)


def test_draws_behind_a_copy_that_does_not_stand_are_thrown_away():
    chains = chains_of([np.array([5, 6] * 6, dtype=np.int32)], [8], 8, max_copies=7)
    chains.keep(chains.feed(), [5, 9, 5, 6, 5, 6, 5, 6])
    assert chains.drafts == [[5, 9]]


def test_requests_get_no_more_than_they_can_use_and_others_get_what_is_left():
    chains, _, _ = grown(TEXTS, [0, 2, 8, 8], 12)
    lengths = [len(drafts) for drafts in chains.drafts]
    assert lengths[0] == 0
    assert lengths[1] <= 2
    assert sum(lengths) == 12


def test_the_shortest_chains_get_the_last_tokens():
    chains, passes, _ = grown([[1], [2], [3]], [8, 8, 8], 5, max_copies=0)
    assert sorted(map(len, chains.drafts)) == [1, 2, 2]
    assert [len(fed.requests) for fed in passes] == [3, 2]


def test_a_pass_for_a_few_of_many_chains_is_not_worth_it():
    _, passes, _ = grown([[1], [2], [3]], [8, 8, 8], 4, max_copies=0)
    assert [len(fed.requests) for fed in passes] == [3]
    assert grown([[1]], [8], 1)[0].drafts != [[]], "one chain alone gets its last token"


def test_where_there_is_no_room_for_all_the_longest_match_is_copied():
    texts = [[1, 2, 3, 9, 9, 9, 2, 3], [*range(10, 20), 7, 7, 7, *range(10, 20)]]
    chains = chains_of([np.array(text, dtype=np.int32) for text in texts], [8, 8], 4, max_copies=7)
    assert chains.feed().tokens == [[3], [19, 7, 7]]


def test_nothing_is_looked_up_where_many_chains_grow():
    text = [1, 2, 3, 9, 9, 9, 2, 3]
    for num_chains, num_copies in ((1, 2), (3, 2), (4, 0), (8, 0)):
        chains = chains_of(
            [np.array(text, dtype=np.int32)] * num_chains, [8] * num_chains, 8 * num_chains, max_copies=7
        )
        assert chains.feed().num_rows == [1 + num_copies] * num_chains


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
