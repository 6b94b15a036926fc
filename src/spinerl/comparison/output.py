"""The tables written out: to the terminal, as Markdown, as CSV with a line per row, as JSON with everything."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from spinerl.comparison.figures import Estimate, Figures, Gain
from spinerl.comparison.table import Cell, Column, Table

__all__ = ["as_csv", "as_json", "as_markdown", "mark", "print_tables"]


def print_tables(console: Console, tables: Sequence[Table]) -> None:
    """Print each table under its title, in as many pieces as the screen needs, and then its sentences."""
    for table in tables:
        console.print(f"\n{table.title}", style="bold")
        for piece in _pieces(table, console.width):
            console.print(_piece(table, piece), soft_wrap=False)
        for sentence in table.sentences:
            console.print(sentence)


def _piece(table: Table, columns: Sequence[Column]) -> RichTable:
    """Some columns of a table; lines that have nothing in them are left out."""
    shown = RichTable(show_edge=False, pad_edge=False)
    shown.add_column("", no_wrap=True)
    for column in columns:
        head = Text(f"{column.head}\n", justify="right") + Text(column.note, style="dim")
        shown.add_column(head, justify="right", no_wrap=True)
    before = None
    for line in table.lines:
        cells = [column.cell(line) for column in columns]
        if all(cell == Cell() for cell in cells):
            continue
        if before is not None and line.kind == "no update" != before:
            shown.add_section()
        before = line.kind
        label = Text(line.name) + Text(f"\n{mark(line)}", style="dim")
        shown.add_row(label, *(Text(f"{cell.main}\n{cell.small}".rstrip()) for cell in cells))
    return shown


def _pieces(table: Table, width: int) -> list[list[Column]]:
    """The columns cut into runs that fit the width next to the labels."""
    label = max(max(len(line.name), len(mark(line))) for line in table.lines)
    pieces: list[list[Column]] = [[]]
    space = width - label
    for column in table.columns:
        cells = [column.cell(line) for line in table.lines]
        texts = [column.head, column.note, *(text for cell in cells for text in (cell.main, cell.small))]
        needed = 3 + max(map(len, texts))
        if pieces[-1] and needed > space:
            pieces.append([])
            space = width - label
        pieces[-1].append(column)
        space -= needed
    return pieces


def mark(line: Figures) -> str:
    """What must follow a line's name wherever it appears: that it learnt nothing, or learnt from gold."""
    return "USES GOLD" if line.uses_gold else "" if line.kind == "adapted" else "no update"


def as_markdown(title: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    """All tables as one Markdown page."""
    lines = [f"# {title}", ""]
    for note in notes:
        lines += [f"- {note}"]
    for table in tables:
        lines += ["", f"## {table.title}", ""]
        lines.append(_markdown_row(["", *(f"{column.head} ({column.note})" for column in table.columns)]))
        lines.append(f"|---|{'---:|' * len(table.columns)}")
        lines += [_markdown_row([_label(line), *(cell.text for cell in table.cells(line))]) for line in table.lines]
        lines += ["", *(f"- {sentence}" for sentence in table.sentences)]
    return "\n".join(lines) + "\n"


def as_csv(tables: Sequence[Table]) -> str:
    """A line per table and row, every figure in a column of its own: fractions, tokens, seconds, nats."""
    rows = [{"table": table.title, **dict(_flat(line))} for table in tables for line in table.lines]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(tables: Sequence[Table], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, values by seed included."""
    return {
        **facts,
        "tables": [
            {"title": t.title, "sentences": list(t.sentences), "lines": [asdict(line) for line in t.lines]}
            for t in tables
        ],
    }


def _label(line: Figures) -> str:
    said = ", ".join(dict.fromkeys(text for text in (mark(line), line.note) if text))
    return f"{line.name} ({said})" if said else line.name


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _flat(line: Figures) -> Iterator[tuple[str, Any]]:
    yield from (("row", line.name), ("kind", line.kind), ("seeds", " ".join(map(str, line.seeds))))
    for key in ("right", "mean", "majority", "votes"):
        yield from _estimate(key, getattr(line, key))
    for key in ("against_none", "against_reference", "against_votes", "against_strongest"):
        yield from _gain(key, getattr(line, key))
    yield from (("num_votes", line.num_votes), ("votes_capped", line.votes_capped), ("strongest", line.strongest))
    for one in line.budgets:
        for key in ("tokens", "right", "strongest", "baseline", "num_won", "num_lost"):
            yield f"step_{one.step}_{key}", getattr(one, key)
    for key in ("best", "last"):
        pair = getattr(line, key)
        if pair is not None:
            yield from ((f"{key}_step", pair[0]), (key, pair[1]))
    for figures in line.elsewhere:
        yield from _estimate(f"{figures.role}:{figures.name}", figures.right)
        yield from _gain(f"{figures.role}:{figures.name}_gain", figures.gain)
    for key in ("tokens", "seconds", "length", "entropy", "uses_gold"):
        yield key, getattr(line, key)


def _estimate(key: str, value: Estimate | None) -> Iterator[tuple[str, Any]]:
    if value is not None:
        yield from ((key, value.value), (f"{key}_low", value.low), (f"{key}_high", value.high))
        yield f"{key}_by_seed", " ".join(f"{one:.6g}" for one in value.by_seed.values())


def _gain(key: str, value: Gain | None) -> Iterator[tuple[str, Any]]:
    if value is not None:
        yield from ((key, value.value), (f"{key}_low", value.low), (f"{key}_high", value.high))
        yield from (
            (f"{key}_p", value.p_value),
            (f"{key}_by_seed", " ".join(f"{v:.6g}" for v in value.by_seed.values())),
        )
        for edge in ("num_won", "num_lost", "seeds_low", "seeds_high", "both_low", "both_high"):
            yield f"{key}_{edge}", getattr(value, edge)
