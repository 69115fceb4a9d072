"""The generator: right, reproducible, disjoint, long-tailed."""

import subprocess
import sys

import pytest

from efficient_rollout.errors import ConfigError
from efficient_rollout.tasks.arithmetic import Problem, take
from efficient_rollout.tasks.reward import compute_score
from efficient_rollout.tasks.training_plans import SIZES, level_of


def _evaluate(chain: str) -> int:
    return sum(int(operand) for operand in chain.split("+"))


def test_worked_answer_reduces_the_leftmost_pair():
    assert Problem((3, 14, 5, 9)).worked_answer == "17+5+9=22+9=31."
    assert Problem((3, 14)).worked_answer == "17."


@pytest.mark.parametrize("size", SIZES)
def test_every_step_of_a_worked_answer_is_right(size):
    for problem in take(level_of(size), "train", seed=3, count=1000):
        steps = problem.worked_answer.removesuffix(".").split("=")
        assert [_evaluate(step) for step in steps] == [sum(problem.operands)] * (len(problem.operands) - 1)
        assert [step.count("+") for step in steps] == list(range(len(problem.operands) - 2, -1, -1))
        assert steps[-1] == problem.answer


@pytest.mark.parametrize("size", SIZES)
def test_worked_answers_earn_the_reward(size):
    for problem in take(level_of(size), "validation", seed=0, count=300):
        assert compute_score("", problem.worked_answer, problem.answer)["score"] == 1.0


def test_same_seed_same_problems_other_seed_others():
    level = level_of("small")
    assert take(level, "train", 7, 200) == take(level, "train", 7, 200)
    assert take(level, "train", 7, 200) != take(level, "train", 8, 200)


def test_problems_do_not_change_between_processes():
    code = (
        "from efficient_rollout.tasks.arithmetic import take\n"
        "from efficient_rollout.tasks.training_plans import level_of\n"
        "print([p.question for p in take(level_of('nano'), 'train', 0, 5)])"
    )
    outputs = {subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2)}
    assert outputs == {str([problem.question for problem in take(level_of("nano"), "train", 0, 5)]) + "\n"}


@pytest.mark.parametrize("size", SIZES)
def test_splits_share_no_problem_whatever_the_seeds(size):
    level = level_of(size)
    train = {problem.question for seed in (0, 1) for problem in take(level, "train", seed, 2000)}
    validation = {problem.question for seed in (0, 1) for problem in take(level, "validation", seed, 500)}
    assert train.isdisjoint(validation)
    assert len(validation) > 100


@pytest.mark.parametrize(("size", "spread"), [("nano", 15), ("small", 50)])
def test_lengths_have_a_long_tail(size, spread):
    level = level_of(size)
    lengths = sorted(problem.num_response_tokens for problem in take(level, "train", 0, 3000))
    median, p99 = lengths[1500], lengths[2970]
    assert p99 > 5 * median
    assert lengths[-1] > spread * lengths[0]
    assert lengths[-1] <= level.max_response_tokens
    assert sum(lengths) / 3000 > 1.3 * median


def test_a_cap_limits_every_answer():
    level = level_of("small").capped(32)
    assert max(problem.num_response_tokens for problem in take(level, "train", 0, 500)) <= 32
    assert level_of("nano").capped(10_000) == level_of("nano")


def test_a_cap_below_every_answer_is_refused():
    with pytest.raises(ConfigError, match=r"max_response_tokens is 2, .* raise it to 3"):
        level_of("nano").capped(2)


def test_an_unknown_size_is_refused_with_the_legal_ones():
    with pytest.raises(ConfigError, match="nano, small, got 'tiny'"):
        level_of("tiny")


def test_generator_and_reward_need_no_torch():
    code = (
        "import sys; import efficient_rollout.tasks.arithmetic, efficient_rollout.tasks.reward;"
        "import efficient_rollout.tasks.cli, efficient_rollout.tasks.dataset, efficient_rollout.tasks.policy;"
        "sys.exit(bool({'torch', 'transformers', 'verl', 'vllm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
