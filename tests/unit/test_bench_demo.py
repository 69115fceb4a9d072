"""What the demo says of two arms' responses."""

import re

import pytest

from efficient_rollout.bench.demo import _same

PLAIN = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]]


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (PLAIN, "Both gave the same 3 responses, token by token."),
        (
            [PLAIN[0], [5, 6, 0, 8], PLAIN[2]],
            "2 of 3 responses are the same.*; the others part behind 2 ",
        ),
        ([[0, 2, 3, 4], [5, 6, 7], PLAIN[2]], "1 of 3 .* part behind 0 to 3 tokens \\(median 1.5\\)"),
    ],
)
def test_responses_that_part_are_told_with_the_place(ours, said):
    assert re.search(said, _same(PLAIN, ours))
