"""The page of a comparison: tables of methods side by side, and their dynamics.  Reads no files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from markupsafe import Markup

from spinerl.report.charts import Chart, Legend, Line, draw_chart
from spinerl.report.curves import charts_of, how_to_read
from spinerl.report.groups import Group
from spinerl.report.page import Live, fill, write_html
from spinerl.report.read import RunData
from spinerl.report.text import visible

__all__ = [
    "Dynamics",
    "PageCell",
    "PageLine",
    "PageSection",
    "Range",
    "draw_range",
    "dynamics",
    "render_comparison",
    "write_comparison",
]


@dataclass(frozen=True)
class PageCell:
    """A figure, what stands under it in small, and whether it "rose" or "fell" ("" for neither)."""

    main: str
    small: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Range:
    """A share with its interval, its value in each seed, and optionally one to compare it with; fractions."""

    value: float
    low: float
    high: float
    dots: tuple[float, ...] = ()
    baseline: float | None = None


@dataclass(frozen=True)
class PageLine:
    """A row of a table.  `style` is the CSS class of its colour, "" for none; `warn` makes its note stand out."""

    name: str
    mark: str
    note: str
    warn: bool
    style: str
    group: str  # a rule is drawn where it changes
    range: Range | None
    cells: tuple[PageCell, ...]


@dataclass(frozen=True)
class Dynamics:
    """The charts of one data set, one legend for all of them, and how to read them."""

    charts: tuple[Chart, ...]
    legend: tuple[Legend, ...]
    reading: str
    steps: tuple[float, float]


@dataclass(frozen=True)
class PageSection:
    """A table with its heads (name, unit), what it says, and the dynamics behind it (None where it pools data sets).

    `sentences`: (row, CSS class of its colour, text); a sentence about all rows has "" for the first two.  `caption`
    says what the pictures show.
    """

    title: str
    sentences: tuple[tuple[str, str, str], ...]
    heads: tuple[tuple[str, str], ...]
    lines: tuple[PageLine, ...]
    dynamics: Dynamics | None
    caption: str = (
        "In the pictures: a line is the interval over questions, a large dot the mean, small dots the seeds, an "
        "upright stroke majority voting at equal tokens. A difference is coloured where its interval over questions "
        "excludes 0."
    )


def write_comparison(
    out: Path,
    title: str,
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
    sections: Sequence[PageSection],
) -> Path:
    """Write the page (`render_comparison`) whole or not at all; its path.  InputError if it cannot be written."""
    return write_html(Path(out), render_comparison(title, facts, notes, sections))


def render_comparison(
    title: str,
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
    sections: Sequence[PageSection],
    live: Live | None = None,
) -> str:
    """The HTML of a comparison, complete in itself; with `live` a page that asks for changes.

    Args:
        facts: name and value of what all the runs share.
        notes: what a reader must know, for example runs that failed.
    """
    return fill(
        "comparison.html.j2",
        title,
        "Test-time reinforcement learning, comparison",
        "run folders of this comparison",
        live,
        wide=True,
        facts=facts,
        notes=notes,
        sections=sections,
        draw_range=draw_range,
        draw_chart=draw_chart,
        partial=partial,
    )


def dynamics(number: int, rows: Mapping[str, Sequence[RunData]], unadapted: float | None) -> Dynamics | None:
    """The curves of one data set: a row's seeds are one curve, their mean in a band from the lowest to the highest.

    Args:
        number: of the section, so that the charts' names differ.
        rows: runs by row name, in the order of the palette; [] of a row that is not on this data set keeps its colour.
        unadapted: Pass@1 without adaptation, drawn across the Pass@1 chart.
    Returns: None without a run.
    """
    groups = [
        Group(visible(name), tuple(runs), colour) for colour, (name, runs) in enumerate(rows.items()) if len(runs)
    ]
    if not groups:
        return None
    first, second = charts_of(groups)
    steps = [row["step"] for group in groups for run in group.runs for row in (*run.metrics, *run.evals)] or [0]
    found = {chart.id: chart for chart in (*first, *second)}
    titles = {"gold": "Pseudo-labels right, by gold"} if len(groups) > 1 else {}
    legend = found["pass1"].legend if len(groups) > 1 else ()
    charts = []
    for id_ in ("pass1", "majority", "reward", "length", "entropy", "gold"):
        chart = found.get(id_)
        if chart is None:
            continue
        if id_ == "pass1" and unadapted is not None and not chart.is_empty:
            across = tuple((float(step), 100 * unadapted) for step in (min(steps), max(steps)))
            line = Line("no adaptation", across, colour=7, dash=1)
            chart = dataclasses.replace(
                chart, lines=(line, *chart.lines), note="The dashed line is the unadapted model."
            )
        shared = {"legend": ()} if len(groups) > 1 else {}
        charts.append(dataclasses.replace(chart, id=f"{id_}-{number}", title=titles.get(id_, chart.title), **shared))
    return Dynamics(tuple(charts), legend, how_to_read(groups, charts), (min(steps), max(steps)))


def draw_range(item: Range | None, style: str) -> Markup:
    """A share on an axis from 0 to 1: its interval, its mean, a small dot per seed, a tick for its baseline."""
    if item is None:
        return Markup("")
    width, height, pad = 180, 26, 8

    def x(value: float) -> float:
        return round(pad + (width - 2 * pad) * min(max(value, 0.0), 1.0), 1)

    middle = height / 2
    parts = [Markup('<line class="rail" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(pad, width - pad, middle, middle)]
    parts += [Markup('<line class="rail" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(x(v), x(v), middle - 3, middle + 3)
              for v in (0.0, 0.5, 1.0)]  # fmt: skip
    parts.append(
        Markup('<line class="reach" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            x(item.low), x(item.high), middle, middle
        )
    )
    parts += [Markup('<circle class="seed" cx="{}" cy="{}" r="2"/>').format(x(dot), middle - 7) for dot in item.dots]
    if item.baseline is not None:
        parts.append(Markup('<path class="baseline" d="M{},{}V{}"/>').format(x(item.baseline), middle - 7, middle + 7))
    parts.append(Markup('<circle class="dot" cx="{}" cy="{}" r="4.2"/>').format(x(item.value), middle))
    return Markup(
        '<svg class="interval range {s}" viewBox="0 0 {w} {h}" width="{w}" height="{h}" aria-hidden="true">{body}</svg>'
    ).format(s=style or "neutral", w=width, h=height, body=Markup("").join(parts))
