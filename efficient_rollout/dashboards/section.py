"""One question of the page, and its answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import plotly.graph_objects as go

from efficient_rollout.metrics import names


@dataclass(frozen=True, slots=True)
class Panel:
    """Holds one figure.

    Attributes:
        title: What it shows, for people who cannot see it too.
        figure: Drawn by plotly; None where there is nothing to draw.
        note: Below it: a thinning, or why there is nothing.
        key: Name in links; empty for one that nothing leads to.
        leads_to: Key of the panel that a click on the figure leads to; empty for none.
    """

    title: str
    figure: go.Figure | None
    note: str = ""
    key: str = ""
    leads_to: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """Answers one question.

    Attributes:
        key: Name in links.
        question: The heading.
        answer: One sentence or two in plain words.
        panels: Figures.
        metrics: Names that the figures show, for the list of meanings.
        table: Rows of cells under the answer, titles first; empty for none.
    """

    key: str
    question: str
    answer: str
    panels: Sequence[Panel]
    metrics: Sequence[str] = field(default=())
    table: Sequence[Sequence[str]] = field(default=())

    @property
    def meanings(self) -> list[tuple[str, str, str]]:
        """Name without prefix, unit and meaning of each metric of this package; veRL documents its own."""
        shown = [name for name in self.metrics if names.is_declared(name)]
        described = [names.declared(name) for name in shown]
        return [(metric.name.removeprefix(names.PREFIX), metric.unit, metric.meaning) for metric in described]


def missing(title: str, *, because: str) -> Panel:
    """Return a marked gap."""
    return Panel(title, None, because)
