"""The data of a chart as CSV, inside a link that needs no other file and no script."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from spinerl.report.charts import Chart
from spinerl.report.histogram import Histogram
from spinerl.report.labels import History
from spinerl.report.text import visible

__all__ = ["ChartData", "data_of_chart"]

_MOST_CELLS = 8_000  # of one chart; longer ones leave steps out, so that the page stays small
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would compute a text that begins so

_Row = Sequence[object]


@dataclass(frozen=True)
class ChartData:
    """A chart's values: a `data:` address of a CSV file, and what it leaves out ("" for nothing)."""

    uri: str
    note: str = ""


def data_of_chart(chart: Chart | Histogram | History) -> ChartData:
    """What the chart draws: curves by step, shares by bin, or labels by question.

    Numbers have six significant digits; a value that is missing is an empty cell.
    """
    if isinstance(chart, Chart):
        return _of_curves(chart)
    return ChartData(_uri(_of_histogram(chart) if isinstance(chart, Histogram) else _of_history(chart)))


def _of_curves(chart: Chart) -> ChartData:
    heads, columns = ["step"], []
    for line in chart.lines:
        if line.points:
            heads.append(line.label)
            columns.append({x: y for x, y in line.points if y is not None})
        spans = line.band or line.whiskers
        if spans:
            heads += [f"{line.label}, low", f"{line.label}, high"]
            columns += [{x: low for x, low, _ in spans}, {x: high for x, _, high in spans}]
    steps = sorted(set().union(*columns))
    every = -(-len(steps) * len(heads) // _MOST_CELLS)  # rounded up
    kept = [step for i, step in enumerate(steps) if (len(steps) - 1 - i) % every == 0]  # the last among them
    rows = [[step, *(column.get(step) for column in columns)] for step in kept]
    note = f"every {every} of {len(steps)} steps; metrics.jsonl has them all" if every > 1 else ""
    return ChartData(_uri([heads, *rows]), note)


def _of_histogram(chart: Histogram) -> Iterable[_Row]:
    heads = ["from nats", "to nats"]
    for outline in chart.outlines:
        heads += [f"{outline.label}, {chart.unit}"] + ([f"{outline.label}, {chart.part}"] if outline.part else [])
    yield heads
    for i in range(chart.num_shown):
        end = chart.edges[i + 1] if i + 1 < len(chart.edges) else None
        shares = [part[i] for outline in chart.outlines for part in (outline.shares, outline.part) if part is not None]
        yield [chart.edges[i], end, *shares]


def _of_history(history: History) -> Iterable[_Row]:
    yield ["question", "from step", "to step", "label", "state"]
    states = {entry.style.split()[0]: entry.label for entry in history.legend}
    for name, row in zip(history.names, history.rows, strict=True):
        for (label, style), same in itertools.groupby(row, key=lambda stretch: (stretch.label, stretch.style)):
            stretches = list(same)
            yield [name, stretches[0].begin, stretches[-1].end - 1, label, states[style]]


def _uri(rows: Iterable[_Row]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return f"data:text/csv;charset=utf-8,{quote(file.getvalue().encode('utf-8', 'replace'), safe=',')}"


def _cell(value: object) -> str:
    """A value as a cell; a text stays a text in a spreadsheet.

    >>> _cell(0.123456789), _cell(12.0), _cell(None), _cell("=1+1")
    ('0.123457', '12', '', "'=1+1")
    """
    if isinstance(value, float | int):
        return f"{value:.6g}" if isinstance(value, float) and value != int(value) else str(int(value))
    text = "" if value is None else visible(str(value))
    return f"'{text}" if text.startswith(_FORMULA) else text
