"""Word problems and their reward: the same for a seed, right answers, splits apart, and only complete answers count."""

import ast
import re

import pytest

from efficient_rollout.tasks import reward
from efficient_rollout.tasks.word_problems import DATA_SOURCE, EXAMPLES, take


def test_a_seed_gives_the_same_problems_whatever_the_split_shares_none():
    train, validation = (take(split, 0, 2000) for split in ("train", "validation"))
    assert train == take("train", 0, 2000)
    assert train != take("train", 1, 2000)
    assert {problem.question for problem in train}.isdisjoint(problem.question for problem in validation)


def test_there_are_many_questions_of_one_step_and_of_two():
    problems = take("train", 0, 2000)
    assert len({problem.question for problem in problems}) > 1900
    kinds = {re.sub(r"\d+|\b[A-Z][a-z]+\b|\b[a-z]+s\b", "_", problem.question) for problem in problems}
    assert len(kinds) >= 18
    assert 0.45 < sum(problem.num_steps == 1 for problem in problems) / len(problems) < 0.55


# By the words that say what is done with the numbers, in the order they stand in.
FORMULAS = {
    "more than": "a+a+b",
    "friend has": "a+b+c",
    "then loses": "a+b-c",
    "sold": "a-b-c",
    "away": "a*b-c",
    "bags with": "a*b+c",
    "too much": "a*b+c",
    "pages a day": "a*b+c",
    "in each": "a*b",
    "children": "a*b",
    "gives": "a-b",
    "took": "a-b",
    "fewer": "a-b",
    "needs": "a-b",
    "": "a+b",
}


def test_the_answer_is_the_one_to_the_question():
    for problem in take("train", 3, 1000):
        formula = next(formula for words, formula in FORMULAS.items() if words in problem.question)
        numbers = dict(zip("abc", re.findall(r"\d+", problem.question), strict=False))
        value = _value(ast.parse("".join(numbers.get(sign, sign) for sign in formula), mode="eval").body)
        assert problem.answer == str(value), problem.question
        assert value >= 1


def _value(node):
    if isinstance(node, ast.Constant):
        return node.value
    left, right = _value(node.left), _value(node.right)
    return {ast.Add: left + right, ast.Sub: left - right, ast.Mult: left * right}[type(node.op)]


def test_the_prompt_shows_answers_in_the_form_that_the_reward_takes():
    (problem,) = take("validation", 0, 1)
    assert [message["role"] for message in problem.messages] == ["user", "assistant"] * len(EXAMPLES) + ["user"]
    assert problem.messages[-1]["content"] == problem.question
    for _, answer in EXAMPLES:
        said = re.findall(r"\d+", answer)[-1]
        assert reward.compute_score(DATA_SOURCE, answer, said)["score"] == 1.0


@pytest.mark.parametrize(
    ("response", "score", "well_formed"),
    [
        ("Ben has 5 + 7 = 12 apples. The answer is 12.", 1, 1),
        ("The answer is 12", 1, 1),
        (" the answer is: $12.00.\n", 1, 1),
        ("The answer is 12 apples.", 1, 1),
        ("The answer is 13.", 0, 1),
        ("The answer is 112.", 0, 1),
        ("The answer is 12. The answer is 13.", 0, 1),
        ("Ben has 12 apples.", 0, 0),
        ("The answer is 12. Now the next one:", 0, 0),
        ("The answer is 5 + 7 = 12.", 0, 0),
        ("The answer is -12.", 0, 0),
        ("The answer is 12.5.", 0, 0),
        ("The answer is ١٢.", 0, 0),
        ("The answer is", 0, 0),
        ("", 0, 0),
    ],
)
def test_only_a_complete_right_answer_at_the_end_counts(response, score, well_formed):
    result = reward.compute_score(DATA_SOURCE, response, "12", {"index": 0})
    assert result == {"score": score, "acc": score, "well_formed": well_formed}
