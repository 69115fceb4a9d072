"""One look for every table, and one meaning of its brackets."""

from efficient_rollout.tables import aligned, bracketed, spread


def test_brackets_hold_the_smallest_and_the_largest_round():
    rounds = spread([0.004, 0.001, 0.002, 0.009])
    assert rounds == {"median": 0.003, "min": 0.001, "max": 0.009}
    assert bracketed(rounds, digits=1, factor=1e3) == "3.0 [1.0, 9.0]"
    assert bracketed(spread([2.0]), digits=2) == "2.00 [2.00, 2.00]"


def test_words_begin_and_numbers_end_under_one_another():
    lines = aligned([["arm", "seconds", ""], ["plain", "10.5", ""], ["int4", "9.5", "faster"]], left=(0, 2))
    assert lines == "arm    seconds\nplain     10.5\nint4       9.5  faster\n"
    assert aligned([["k"], ["10"], ["4"]], left=()) == " k\n10\n 4\n"
