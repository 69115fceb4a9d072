"""What lines are drawn of numbers that are not all there."""

import numpy as np
import pytest

pytest.importorskip("plotly")

from efficient_rollout.dashboards import figures


def drawn(steps: list[int], values: list[float], **options: bool) -> tuple[list[int], list[float], str]:
    figure, _ = figures.lines(steps, {"a": np.array(values)}, y_title="", unit="", **options)
    (line,) = figure.data
    assert not line.connectgaps
    return list(line.x), list(line.y), line.mode


def test_no_line_crosses_steps_that_are_missing():
    steps, values, _ = drawn([1, 2, 5, 6, 9], [1.0, 2.0, 5.0, 6.0, 9.0])
    assert steps == [1, 2, 3, 5, 6, 7, 9]
    assert [None if np.isnan(value) else value for value in values] == [1.0, 2.0, None, 5.0, 6.0, None, 9.0]


def test_steps_that_are_apart_are_joined():
    assert drawn([0, 10, 20], [1.0, 2.0, 3.0], are_apart=True)[:2] == ([0, 10, 20], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("every", [1, 2])
def test_a_number_between_two_that_are_missing_is_seen(every):
    values = [1.0 if step % every == 0 else np.nan for step in range(200)]
    assert ("markers" in drawn(list(range(1, 201)), values)[2]) is (every == 2)
