"""The page around the figures: one HTML file that needs nothing else, no network and no account."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import plotly.io
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from efficient_rollout.dashboards.drafting import cost_section, decisions_section, drafting_section, health_section
from efficient_rollout.dashboards.figures import Panel, Section
from efficient_rollout.dashboards.lanes import tail_section
from efficient_rollout.dashboards.training import speed_section, training_section
from efficient_rollout.files import read_text
from efficient_rollout.training_runs.recipe import comparison_notes
from efficient_rollout.training_runs.run import Run

_TEMPLATE = Path(__file__).parent / "page.html"
_ORIGIN = ("time", "commit", "python", "argv", "packages", "hardware")


def sections(own: Run, baseline: Run | None) -> list[Section]:
    """Return the questions in the order a reader asks them."""
    of_own = (drafting_section, decisions_section, tail_section, cost_section, health_section)
    return [speed_section(own, baseline), training_section(own, baseline), *(section(own) for section in of_own)]


def render(own: Run, baseline: Run | None = None, *, is_watched: bool = False) -> str:
    """Return the page; one that is watched, and written again and again, can be asked to reload itself.

    Raises:
        InputFileError: The runs follow different recipes.
    """
    notes = [*own.notes]
    if baseline is not None:
        notes += [f"Baseline: {note}" for note in baseline.notes] + comparison_notes(own, baseline)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(read_text(_TEMPLATE, what="the page's template", remedy="install again"))
    runs = {"this run": own} | ({"baseline": baseline} if baseline is not None else {})
    return template.render(
        title=own.directory.name,
        runs=[(name, run.directory, _extent(run)) for name, run in runs.items()],
        notes=notes,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        is_watched=is_watched,
        sections=sections(own, baseline),
        drawn=_drawn,
        origins=[(name, origin) for name, run in runs.items() if (origin := _origin(run.provenance))],
        # The library's own text, and the only text beside its figures that is not escaped.
        plotlyjs=Markup(get_plotlyjs()),
    )


def _drawn(panel: Panel) -> Markup:
    """Return a panel's figure as the library writes it for a page: it escapes what could end a script in the data."""
    assert panel.figure is not None, "the template shows the note of one without"
    text = plotly.io.to_html(
        panel.figure,
        full_html=False,
        include_plotlyjs=False,
        default_height=f"{panel.figure.layout.height}px",
        config={"responsive": True, "displayModeBar": False, "displaylogo": False},
    )
    return Markup(text)


def _extent(run: Run) -> str:
    steps = run.steps
    return f"{len(steps)} steps, {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"1 step, number {steps[0]}"


def _origin(provenance: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    def flat(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {flat(item)}" for key, item in value.items())
        return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)

    return [(key, flat(provenance[key])) for key in _ORIGIN if provenance.get(key) is not None]
