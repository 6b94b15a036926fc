"""The comparison's page: what the tables and the runs hold, in the form that `spinerl.report.comparison` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spinerl.comparison.collect import MethodResult
from spinerl.comparison.figures import Figures
from spinerl.comparison.output import mark
from spinerl.comparison.plan import NONE, Comparison
from spinerl.comparison.table import Table
from spinerl.report.charts import PALETTE_SIZE
from spinerl.report.comparison import PageCell, PageLine, PageSection, Range, dynamics, write_comparison

__all__ = ["write_page"]

_NAMED = 8  # rows in a page's title; of more their number


def write_page(
    out: Path,
    comparison: Comparison,
    tables: Sequence[Table],
    outcomes: Mapping[str, Sequence[MethodResult]],
    notes: Sequence[str],
) -> Path:
    """Write the self-contained HTML page; the table over all data sets comes first."""
    adapted = [row.name for row in comparison.rows if row.method != NONE]
    colours = {name: number for number, name in enumerate(adapted)}
    pooled = [table for table in tables if table.title not in outcomes]
    sections = []
    for number, table in enumerate([*pooled, *(table for table in tables if table not in pooled)]):
        curves = None
        if table.title in outcomes:
            found = {outcome.name: outcome for outcome in outcomes[table.title]}
            runs = {_marked(comparison, name): found[name].runs if name in found else () for name in adapted}
            none = next((line.right for line in table.lines if line.name == NONE), None)
            curves = dynamics(number, runs, none.value if none else None)
        lines = tuple(_line(table, line, colours) for line in table.lines)
        heads = tuple((column.head, column.note) for column in table.columns)
        sections.append(PageSection(table.title, _said(table, colours), heads, lines, curves))
    return write_comparison(out, _title(adapted, comparison), _facts(comparison), notes, sections)


def _said(table: Table, colours: Mapping[str, int]) -> tuple[tuple[str, str, str], ...]:
    """(row, its colour's class, what is said of it) of each sentence; no row for what is said of all."""
    said = []
    for sentence in table.sentences:
        name, colon, rest = sentence.partition(": ")
        known = bool(colon) and name in colours
        said.append((name, _style(colours[name]), rest) if known else ("", "", sentence))
    return tuple(said)


def _style(colour: int) -> str:
    return f"s{colour % PALETTE_SIZE}"


def _line(table: Table, line: Figures, colours: Mapping[str, int]) -> PageLine:
    picture = None
    if line.right is not None:
        seeds = tuple(line.right.by_seed.values()) if line.kind == "adapted" and len(line.right.by_seed) > 1 else ()
        baseline = line.votes.value if line.votes else None
        picture = Range(line.right.value, line.right.low, line.right.high, seeds, baseline)
    cells = tuple(PageCell(cell.main, cell.small, cell.verdict) for cell in table.cells(line))
    style = _style(colours[line.name]) if line.name in colours else ""
    return PageLine(line.name, mark(line), line.note, line.uses_gold, style, line.kind, picture, cells)


def _title(adapted: Sequence[str], comparison: Comparison) -> str:
    marked = [_marked(comparison, name) for name in adapted]
    if len(marked) > _NAMED:
        names = f"{len(marked)} methods"
    else:
        names = ", ".join(marked[:-1]) + f" and {marked[-1]}" if len(marked) > 1 else "".join(marked) or NONE
    data = comparison.keys.data
    return f"{names} on {data[0] if len(data) == 1 else f'{len(data)} data sets'}"


def _marked(comparison: Comparison, name: str) -> str:
    """A row's name where its label stands by itself, as in a legend: one that learned from gold says so."""
    gold = any(task.config.uses_gold for task in comparison.tasks if task.row.name == name)
    return f"{name} (uses gold)" if gold else name


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    keys = comparison.keys
    configs = [task.config for task in comparison.tasks if task.config.steps]
    steps = sorted({config.steps for config in configs})
    models = sorted({task.config.model.name for task in comparison.tasks})
    return [
        ("Rows", ", ".join(_marked(comparison, row.name) for row in comparison.rows)),
        ("Data", ", ".join(keys.data)),
        ("Seeds", ", ".join(map(str, keys.seeds))),
        ("Steps", " or ".join(map(str, steps)) or "0"),
        ("Model", ", ".join(models)),
        ("Runs", str(len(comparison.tasks))),
    ]
