"""What the page says, and what a browser draws of it."""

import json
import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from browser import browser, contrast, look_at, run_browser
from report_support import write_run, write_troubled_run

pytest.importorskip("plotly")
pytest.importorskip("jinja2")

from plotly.offline import get_plotlyjs

from efficient_rollout.dashboards.page import render, sections
from efficient_rollout.metrics import names
from efficient_rollout.training_runs.comparison import shared_steps
from efficient_rollout.training_runs.recipe import comparison_notes
from efficient_rollout.training_runs.run import Run, read_run

KEYS = ["speed", "training", "drafting", "controller", "tail", "cost", "engines"]
HOSTILE = "</script><img src=x onerror='parent.marked=window.marked=true'><script>window.marked=true</script>"


def pair(folder: Path, **changes: Any) -> tuple[Run, Run]:
    own = write_run(folder / "own", **changes)
    plain = write_run(folder / "plain", speed=1000.0, drafting=False, seed=1, **changes)
    return read_run(own), read_run(plain)


def rewrite(run: Path, change: Any) -> Run:
    """The run with `change` applied to every record."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(change(record)) + "\n" for record in records))
    return read_run(run)


def answers(own: Run, baseline: Run | None = None) -> dict[str, str]:
    return {section.key: section.answer for section in sections(own, baseline)}


def num_figures(own: Run, baseline: Run | None = None) -> int:
    return sum(panel.figure is not None for section in sections(own, baseline) for panel in section.panels)


def test_the_questions_come_in_the_order_a_reader_asks_them(tmp_path):
    page = render(*pair(tmp_path))
    assert re.findall(r'<section id="(\w+)">', page) == [*KEYS, "origin"]
    assert page.count("<h2>Is it faster?</h2>") == 1


def test_an_origin_says_none_where_there_are_none(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "provenance.json").write_text(json.dumps({"hardware": {"gpus": [], "num_cores": 2}}))
    assert "gpus none, num_cores 2" in render(read_run(run))


def test_the_page_needs_no_other_file_and_holds_the_library_once(tmp_path):
    page = render(*pair(tmp_path))
    around = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", around)
    assert "<script src" not in page
    assert len(page) < 6e6


def test_without_a_baseline_nothing_is_said_to_be_faster(tmp_path):
    said = answers(pair(tmp_path)[0])
    assert said["speed"].startswith("Cannot tell: no baseline was given")
    assert said["training"].startswith("Cannot tell: no baseline was given")


def test_a_run_beside_itself_is_neither_faster_nor_different(tmp_path):
    own, _ = pair(tmp_path)
    said = answers(own, own)
    assert said["speed"].count("cannot tell") == 2
    assert said["speed"].count("contains 1") == 2
    assert said["training"].startswith("No difference can be told")


def test_a_run_that_is_slower_is_said_to_be_slower(tmp_path):
    own, plain = pair(tmp_path)
    assert answers(own, plain)["speed"].startswith("Rollouts are faster: 1.4")
    assert answers(plain, own)["speed"].startswith("Rollouts are slower: 0.6")


def test_a_sick_engine_is_named_with_its_first_step(tmp_path):
    def fault(record: dict[str, Any]) -> dict[str, Any]:
        return record | {names.DRAFTER_FAULTS: int(record["step"] == 7), names.STALE_DRAFTER: int(record["step"] > 9)}

    own = write_run(tmp_path / "own")
    assert answers(read_run(own))["engines"].startswith("No: no fault")
    assert "hold what came" not in answers(read_run(own))["engines"]
    synced = {names.PROVEN_WEIGHT_SHARE: 0.5, names.WEIGHTS_CHECKSUM: 77}
    run = rewrite(own, lambda record: record | synced | {names.WEIGHTS_AS_SENT: int(record["step"] > 2)})
    assert "in 12 of 12 steps, looked at in turn for at least 50 %" in answers(run)["engines"]
    assert "in 10 it came with the checksums of the trainer. The last: 77." in answers(run)["engines"]
    said = answers(rewrite(own, fault))["engines"]
    assert said.startswith(
        "Yes: faults that turned a drafter off: 1, the first in step 7; a drafter did not follow the"
    )


def test_a_slow_engine_stands_beside_the_mean(tmp_path):
    def of_three(record: dict[str, Any]) -> dict[str, Any]:
        tokens = {names.ENGINE_MIN_PREFIX: 300.0, names.ENGINE_MEAN_PREFIX: 900.0, names.ENGINE_MAX_PREFIX: 1200.0}
        spread = {names.over_engines(prefix, names.TOKENS_PER_SECOND): value for prefix, value in tokens.items()}
        return record | spread | {names.NUM_ENGINES: 3}

    own = write_run(tmp_path / "own")
    (alone,) = [section for section in sections(read_run(own), None) if section.key == "engines"]
    assert [panel.title for panel in alone.panels] == ["Engines and their faults"]
    (engines,) = [section for section in sections(rewrite(own, of_three), None) if section.key == "engines"]
    assert engines.answer.endswith(
        "In the median step the slowest engine gives 0.25 of the fastest one's tokens a second."
    )
    _, speed, length = engines.panels
    assert speed.figure is not None
    assert {trace.name: trace.y[0] for trace in speed.figure.data} == {
        "smallest engine": 300.0, "mean": 900.0, "largest engine": 1200.0,
    }  # fmt: skip
    assert (length.figure, length.note) == (None, "No step reports it of two engines.")


@pytest.mark.parametrize(
    "change",
    [
        lambda record: {"step": record["step"], "critic/score/mean": math.nan},
        lambda record: {name: value for name, value in record.items() if not name.startswith(names.PREFIX)},
        lambda record: dict.fromkeys(record, math.nan) | {"step": record["step"]},
        lambda record: dict.fromkeys(record) | {"step": record["step"]},
        lambda record: dict.fromkeys(record, "text") | {"step": record["step"]},
        lambda record: dict.fromkeys(record, 0.0) | {"step": record["step"]},
        lambda record: dict.fromkeys(record, -1e300) | {"step": record["step"]},
        lambda record: record if record["step"] % 2 else {"step": record["step"], "critic/score/mean": 0.5},
    ],
)
@pytest.mark.filterwarnings("error")
def test_numbers_that_are_missing_or_absurd_leave_gaps_in_a_whole_page(change, tmp_path):
    own, plain = pair(tmp_path)
    broken = rewrite(own.directory, change)
    for runs in ((broken, None), (broken, plain), (plain, broken)):
        page = render(*runs)
        assert re.findall(r'<section id="(\w+)">', page)[: len(KEYS)] == KEYS
        assert page.count('<div class="panel"') == page.count('class="gap"') + num_figures(*runs)
        told = re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)
        assert not re.search(r"\bnan\b", told), "a gap is no number"


def test_a_run_without_a_timeline_says_so(tmp_path):
    own = write_run(tmp_path / "own")
    (own / "timeline.jsonl").unlink()
    assert answers(read_run(own))["tail"] == "Cannot tell: this run holds no timeline."


@pytest.mark.parametrize("num_steps", [1, 3, 3000])
def test_any_number_of_steps_is_few_points_and_says_what_they_stand_for(num_steps, tmp_path):
    drawn = sections(*pair(tmp_path, num_steps=num_steps))
    by_step = {"training", "controller", "cost", "engines"}
    panels = [panel for section in drawn if section.key in by_step for panel in section.panels if panel.figure]
    assert max(len(trace.x) for panel in panels for trace in panel.figure.data) == min(num_steps, 375)
    assert any("mean of" in panel.note for panel in panels) == (num_steps > 400)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Run:
    """A run whose labels, settings and origin are markup with a script."""
    run = write_run(tmp_path_factory.mktemp("hostile") / "<b onclick=x>run", num_steps=3)

    def change(record: dict[str, Any]) -> dict[str, Any]:
        return record | {
            names.REASON_SHARE_PREFIX + HOSTILE: 0.5,
            names.REASON_SHARE_PREFIX + "<b>bold</b>": 0.2,
            names.ACCEPTANCE_RATE_AT_PREFIX + HOSTILE: 0.5,
        }

    (run / "provenance.json").write_text(json.dumps({"argv": [HOSTILE], "hardware": {HOSTILE: HOSTILE}}))
    return rewrite(run, change)


def test_markup_from_a_file_is_text(hostile):
    page = render(hostile)
    assert HOSTILE not in page
    assert "<img" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "<b onclick" not in page
    assert page.count("</script>") == page.count("<script")


def written(folder: Path, *runs: Run) -> Path:
    page = folder / "page.html"
    page.write_text(render(*runs), encoding="utf-8")
    return page


@pytest.mark.parametrize(
    ("num_steps", "width", "scheme"), [(12, 1280, "light"), (3, 400, "dark"), (3000, 400, "light")]
)
def test_a_browser_draws_every_figure_within_the_page(num_steps, width, scheme, tmp_path):
    browser()
    own, plain = pair(tmp_path, num_steps=num_steps)
    seen = look_at(written(tmp_path, own, plain), tmp_path, width=width, scheme=scheme)
    assert (seen["faults"], seen["overflow"], seen["wide"]) == ([], False, [])
    drawn = {section.key: section for section in sections(own, plain)}
    for key in KEYS:
        figures = [panel.figure for panel in drawn[key].panels if panel.figure is not None]
        assert seen["sections"][key]["figures"] == len(figures), key
        lines = [
            trace for figure in figures for trace in figure.data if trace.type == "scatter" and "lines" in trace.mode
        ]
        # A line with gaps is drawn in pieces.
        num_pieces = sum(list(trace.x).count(None) or 1 for trace in lines if trace.x[0] is not None)
        assert seen["sections"][key]["lines"] == num_pieces, key
        assert seen["sections"][key]["gaps"] == 0, key
        assert drawn[key].answer in seen["sections"][key]["text"]
    num_bars, num_parts = {12: 12, 3: 3, 3000: 60}[num_steps], 8
    assert seen["sections"]["speed"]["bars"] == 2 * num_bars * num_parts
    assert seen["sections"]["drafting"]["bars"] == 4
    assert seen["sections"]["tail"]["bars"] > 3 * 64
    assert contrast(seen["back"], seen["text"]) > 7.0
    assert min(contrast(seen["back"], colour) for colour in seen["ticks"]) > 7.0
    assert (contrast(seen["back"], "rgb(0, 0, 0)") < 2.0) == (scheme == "dark")


def test_a_browser_runs_no_script_of_a_label(hostile, tmp_path):
    browser()
    seen = look_at(written(tmp_path, hostile), tmp_path, width=400, scheme="light")
    assert (seen["marked"], seen["faults"], seen["images"], seen["overflow"]) == (False, [], 0, False)
    assert {"<b>bold</b>", HOSTILE} <= set(seen["legends"]), "markup is shown as the text it is"


def test_a_browser_prints_every_question(tmp_path):
    browser()
    page = written(tmp_path, *pair(tmp_path))
    out = tmp_path / "page.pdf"
    run_browser(f"--print-to-pdf={out}", page.as_uri(), profile=tmp_path / "profile")
    num_pages = len(re.findall(rb"/Type\s*/Page\b", out.read_bytes()))
    assert 4 <= num_pages <= 14


def lines_of(run: Run, key: str, title: str) -> dict[str, dict[int, float]]:
    """What a figure draws: by label, the numbers by step."""
    (section,) = (section for section in sections(run, None) if section.key == key)
    (figure,) = (panel.figure for panel in section.panels if panel.title == title)
    return {
        line.name: {int(x): float(y) for x, y in zip(line.x, line.y, strict=True) if not math.isnan(y)}
        for line in figure.data
    }


@pytest.mark.parametrize("framework", ["verl", "openrlhf"])
def test_a_long_runs_troubles_are_drawn_as_what_they_are(framework, tmp_path):
    run = read_run(write_troubled_run(tmp_path / "run", framework=framework))
    assert (run.steps, run.resumed, run.short_of_engines) == ([1, 2, 3, 4, 6, 7, 8], [6], [7, 8])
    page = render(run)
    assert "resumed before step 6: " in page
    assert "Between 3 and 4 engines reported, fewer than 4 in 2 steps, first in step 7." in page
    # An engine less is no less drafting.
    assert lines_of(run, "cost", "Seconds a step")["drafting"] == dict.fromkeys(run.steps, 0.5)
    assert lines_of(run, "engines", "Engines and their faults")["engines that reported"] == {
        **dict.fromkeys([1, 2, 3, 4, 6], 4.0), 7: 3.0, 8: 3.0
    }  # fmt: skip
    measured = {4: 0.5, 8: 0.75} if framework == "openrlhf" else {0: 0.25, 4: 0.5, 8: 0.75}
    assert list(lines_of(run, "training", "Validation").values()) == [measured]


def test_no_comparison_counts_steps_after_a_resume_or_without_an_engine(tmp_path):
    own, other = (read_run(write_troubled_run(tmp_path / name)) for name in ("own", "other"))
    assert shared_steps(own, other) == [2, 3, 4]
    assert comparison_notes(own, other)[1:] == []
    fewer = read_run(write_troubled_run(tmp_path / "fewer", num_engines=2))
    for run in (own, fewer):
        (run.directory / "config.yaml").write_text("{}")
    assert comparison_notes(read_run(own.directory), read_run(fewer.directory)) == [
        "The runs differ in their engines (4 here, 2 in the baseline)."
    ]


_ASK = """<script>addEventListener("load", () => {
  const box = document.getElementById("reload"), [entry] = performance.getEntriesByType("navigation");
  document.title = `${entry.type}, ${box.checked}${document.getElementById("age").textContent}`;
  // Asked once, and unasked by the page that comes of it.
  if (ASKED) box.click();
});</script>"""


@pytest.mark.parametrize(
    ("asked", "told"), [("true", "reload, true, 2 minutes ago"), ("false", "navigate, false, 2 minutes ago")]
)
def test_a_watched_page_tells_its_age_and_loads_itself_again_when_asked(asked, told, tmp_path):
    browser()
    # Without the library: it is loaded twice, and draws nothing of this.
    text = render(read_run(write_run(tmp_path / "run", num_steps=2)), is_watched=True).replace(get_plotlyjs(), "")
    then = (datetime.now(UTC) - timedelta(seconds=125)).isoformat(timespec="seconds")
    text = re.sub(r'datetime="[^"]*"', f'datetime="{then}"', text, count=1)
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", _ASK.replace("ASKED", asked) + "</body>"), encoding="utf-8")
    shown = run_browser("--window-size=800,800", "--dump-dom", page.as_uri(), profile=tmp_path / "profile")
    assert re.findall("<title>(.*?)</title>", shown)[0] == told


def test_a_page_that_is_not_watched_does_not_load_itself_again(tmp_path):
    page = render(pair(tmp_path)[0])
    assert 'id="written"' in page
    assert 'id="reload"' not in page


def test_passes_of_the_drafter_and_what_copies_gave_are_told(tmp_path):
    own, plain = pair(tmp_path)
    assert answers(own)["drafting"].endswith(
        "The drafter takes 3.0 passes a tick; of the copied tokens that they check 25% stand."
    )
    assert "passes" not in answers(plain)["drafting"]
