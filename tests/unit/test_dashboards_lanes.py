"""What is drawn of a step's responses: a line for each, in the colours of its draft lengths, the last to end on top."""

from typing import Any

import pytest
from browser import browser, contrast, look_at
from report_support import step_timelines, write_run

pytest.importorskip("plotly")
pytest.importorskip("jinja2")

from efficient_rollout.dashboards.figures import LENGTH_COLOURS
from efficient_rollout.dashboards.lanes import lanes_panel
from efficient_rollout.dashboards.page import render
from efficient_rollout.metrics.rollout_record import MAX_STEP_LANES, StepTimelines
from efficient_rollout.metrics.timeline import END, parts_of
from efficient_rollout.training_runs.run import read_run

# Waits for a seat; drafts 4 with success, then 2 without; is plain; runs on alone, with drafts longer than any colour.
LAST = [1.0, 9.0, 900, 2.0, 3.0, 10, 40, 40, 3.0, 4.0, 10, 20, 0, 6.0, 9.0, 10, 120, 60]
PLAIN, SHORT = [0.0, 6.0, 400], [0.0, 2.0, 90, 0.0, 2.0, 10, 40, 11]


def of(*engines: list[list[float]], num_responses: int = 0) -> StepTimelines:
    lanes = {str(number): lanes for number, lanes in enumerate(engines)}
    bins = {str(number): [[0.0, 10.0 - number, 1.0, 1.0]] for number in range(len(engines))}
    return StepTimelines.of(8, bins, lanes, num_responses or sum(map(len, engines)))


def drawn(timelines: StepTimelines) -> dict[tuple[str, str, float], list[Any]]:
    """Pieces of lines, by name, colour and width: row, start and end."""
    figure = lanes_panel(timelines).figure
    assert figure is not None
    found: dict[tuple[str, str, float], list[Any]] = {}
    for trace in figure.data:
        if trace.mode == "lines" and trace.x[0] is not None:
            pieces = zip(trace.y[::3], trace.x[::3], trace.x[1::3], strict=True)
            found[trace.name, trace.line.color, trace.line.width] = list(pieces)
    return found


def test_each_response_is_drawn_from_its_start_to_its_end_by_what_it_drafted():
    # Of rows of 12 pixels: what was accepted of all, of none, of half, of a quarter.
    assert drawn(of([SHORT, LAST, PLAIN])) == {
        ("no drafts", LENGTH_COLOURS[0], 2.16): [(0, 1.0, 2.0), (0, 4.0, 6.0), (1, 0.0, 6.0)],
        ("k = 4", LENGTH_COLOURS[4], 10.8): [(0, 2.0, 3.0)],
        ("k = 2", LENGTH_COLOURS[2], 4.32): [(0, 3.0, 4.0)],
        ("k = 8 or more", LENGTH_COLOURS[8], 8.64): [(0, 6.0, 9.0)],
        ("k = 4", LENGTH_COLOURS[4], 6.48): [(2, 0.0, 2.0)],
    }


def test_the_end_of_each_tells_its_numbers_and_the_note_who_was_waited_for():
    panel = lanes_panel(of([SHORT, LAST], [PLAIN], num_responses=40))
    assert panel.figure is not None
    (ends,) = (trace for trace in panel.figure.data if trace.mode == "markers")
    assert list(ends.x) == [9.0, 6.0, 2.0]
    assert [list(row) for row in ends.customdata] == [
        [1, 1.0, 900, 0.625, 0.556], [2, 0.0, 400, 0.0, 0.0], [1, 0.0, 90, 1.0, 0.275],
    ]  # fmt: skip
    assert panel.note.startswith(
        "The last response to end ran on alone for 3 s; it drafted in 62% of its time, and 56% of its drafts were "
    )
    assert "Drawn are 3 of 40 responses" in panel.note
    assert "Each engine counts from its own zero." in panel.note


def test_a_step_without_responses_says_so():
    assert (lanes_panel(of([])).figure, lanes_panel(of([], [])).key) == (None, "")


def test_a_thousand_responses_of_several_engines_are_few_lines_on_a_small_page(tmp_path):
    timelines = step_timelines(4, num_engines=4, num_requests=1024)
    figure = lanes_panel(timelines).figure
    assert figure is not None
    assert len(figure.data) < 2 * 4 * len(LENGTH_COLOURS)
    (ends,) = (trace for trace in figure.data if trace.mode == "markers")
    assert MAX_STEP_LANES // 2 < len(ends.x) <= MAX_STEP_LANES
    assert list(ends.x) == sorted(ends.x, reverse=True)
    assert ends.x[0] == max(lane[END] for lanes in timelines.lanes for lane in lanes)
    assert sum(len(trace.x) for trace in figure.data) < 50_000
    assert all(len(list(parts_of(lane))) <= 40 for lanes in timelines.lanes for lane in lanes)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (400, "light")])
def test_a_click_on_the_tail_leads_to_who_ran_then(width, scheme, tmp_path):
    browser()
    page = tmp_path / "page.html"
    page.write_text(render(read_run(write_run(tmp_path / "run"))), encoding="utf-8")
    seen = look_at(page, tmp_path, width=width, scheme=scheme, click="[data-leads-to=lanes-12]")
    assert (seen["faults"], seen["overflow"], seen["wide"]) == ([], False, [])
    assert (seen["place"], seen["marks"]) == ("#lanes-12", ["lanes-12"])
    assert {"no drafts", "k = 3", "k = 4"} <= set(seen["legends"])
    # Of what tells apart without words: all colours, on this scheme's ground.
    assert min(contrast(seen["back"], f"rgb{tuple(bytes.fromhex(one[1:]))}") for one in LENGTH_COLOURS) > 1.5
