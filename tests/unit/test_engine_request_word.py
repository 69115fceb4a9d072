"""A request's own word on drafting: what is one, what is refused and how, and what is made of it."""

from typing import Any

import pytest

from efficient_rollout.engine.request_word import FLAT_KEY, check_word, longest_draft, with_word
from efficient_rollout.errors import ConfigError

MOST = 4


def nested(longest: Any) -> dict[str, Any]:
    return {"efficient_rollout": {"max_draft_tokens": longest}}


@pytest.mark.parametrize("extra_args", [None, {}, {"of_another": True}])
def test_without_a_word_the_engines_own_limit_holds(extra_args):
    check_word(extra_args, MOST)
    assert longest_draft(extra_args, MOST) == MOST


@pytest.mark.parametrize("longest", [0, 1, MOST])
def test_a_word_is_the_longest_draft_in_either_form(longest):
    for extra_args in (nested(longest), {FLAT_KEY: longest}):
        check_word(extra_args, MOST)
        assert longest_draft(extra_args, MOST) == longest
        # Less may be useful than is wanted.
        assert longest_draft(extra_args, 0) == 0


@pytest.mark.parametrize("longest", [-1, MOST + 1, True, False, 2.0, "2", None, [2]])
def test_what_is_no_number_of_drafts_is_refused_with_what_is_wrong_and_what_is_legal(longest):
    for extra_args in (nested(longest), {FLAT_KEY: longest}):
        with pytest.raises(ConfigError, match=r"from 0 \(no drafts\) to 4, .*max_draft_tokens, got ") as refused:
            check_word(extra_args, MOST)
        assert str(refused.value).endswith(f"got {longest!r}")


@pytest.mark.parametrize("word", [{}, 0, {"max_draft_token": 0}, {"max_draft_tokens": 0, "rule": "always"}])
def test_other_keys_are_refused(word):
    with pytest.raises(ConfigError, match=r"is \{'max_draft_tokens': N\} alone, got "):
        check_word({"efficient_rollout": word}, MOST)


def test_two_words_are_refused():
    with pytest.raises(ConfigError, match="has both efficient_rollout and efficient_rollout_max_draft_tokens"):
        check_word(nested(0) | {FLAT_KEY: 0}, MOST)


@pytest.mark.parametrize("unchecked", [{"efficient_rollout": 3}, nested("many"), nested(-3), {FLAT_KEY: "0"}])
def test_what_nobody_checked_ends_no_engine(unchecked):
    assert longest_draft(unchecked, MOST) in (0, MOST)


def test_a_word_is_added_where_a_request_has_none_of_its_own():
    assert with_word(None, 2) == nested(2)
    assert with_word({"other": 1}, 0) == {"other": 1} | nested(0)
    for own in (nested(3), {FLAT_KEY: 3}):
        assert with_word(own, 0) == own
