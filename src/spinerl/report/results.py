"""The table of the unadapted model against the adapted one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from spinerl.report.charts import draw_interval
from spinerl.report.groups import Group, Triple, eval_row, verdict_of
from spinerl.report.read import number
from spinerl.report.text import show_percent, show_sign, visible
from spinerl.report.words import show_interval

__all__ = ["result_tables"]

_ACCURACY = re.compile(r"eval/(pass|avg|maj)@([0-9]{1,9})\Z")


@dataclass(frozen=True)
class _Cell:
    before: str
    after: str
    before_range: str
    after_range: str
    change: str
    verdict: str
    picture: Markup


@dataclass(frozen=True)
class _Row:
    label: str
    note: str
    cells: tuple[_Cell, ...]


@dataclass(frozen=True)
class _Table:
    rows: tuple[_Row, ...]
    columns: tuple[tuple[Group, str, str], ...]  # group, heading of before, heading of after
    pictured: bool  # whether it has intervals to draw
    seeded: bool  # whether a column stands for several seeds


def result_tables(groups: Sequence[Group]) -> list[_Table]:
    """The groups side by side; then, if a group has several runs, the runs.  [] without evaluations."""
    each = [Group(visible(run.name), (run,), group.colour) for group in groups for run in group.runs]
    result = []
    for columns in [list(groups)] if len(each) == len(groups) else [list(groups), each]:
        rows = _accuracy_table(columns)
        pictured = any(cell.picture for row in rows for cell in row.cells)
        seeded = any(len(group.runs) > 1 for group in columns)
        if rows:
            result.append(_Table(tuple(rows), tuple(_columns(columns)), pictured, seeded))
    return result


def _columns(groups: Sequence[Group]) -> list[tuple[Group, str, str]]:
    """(group, heading of before, heading of after)."""
    result = []
    for group in groups:
        steps = {row["step"] for run in group.runs if (row := eval_row(run, -1)) is not None}
        after = f"step {next(iter(steps))}" if len(steps) == 1 else "last" if steps else "none yet"
        result.append((group, "step 0", after))
    return result


def _accuracy_table(groups: Sequence[Group]) -> list[_Row]:
    """Rows that at least one evaluation filled, of the many pass@k those at powers of two; [] without evaluations."""
    rows = [row for group in groups for run in group.runs for row in run.evals]
    accuracies = sorted(
        {
            (key != "eval/pass@1", ("avg", "maj", "pass").index(m[1]), int(m[2]), key)
            for row in rows
            for key in row
            if (m := _ACCURACY.match(key)) and number(row[key]) is not None
            if m[1] != "pass" or int(m[2]).bit_count() == 1
        }
    )
    specs = [(*_accuracy_name(key), key, "share") for *_, key in accuracies]
    specs += [
        ("Response length", "tokens, mean", "eval/response_length", "tokens"),
        ("Token entropy", "nats, mean", "eval/entropy", "nats"),
        ("Truncated", "responses cut off by the token limit", "eval/truncated_frac", "frac"),
        ("Abstained", "responses without a readable answer", "eval/abstained_frac", "frac"),
        ("Majority fraction", "votes of the largest class", "eval/majority_frac", "frac"),
    ]
    table = []
    for label, note, key, kind in specs:
        cells = [_cell(group.eval_mean(0, key), group.eval_mean(-1, key), kind, len(group.runs)) for group in groups]
        if any(cell.before != "–" or cell.after != "–" for cell in cells):
            table.append(_Row(label, note, tuple(cells)))
    return table


def _accuracy_name(key: str) -> tuple[str, str]:
    match = _ACCURACY.match(key)
    assert match is not None
    kind, k = match[1], match[2]
    if (kind, k) == ("pass", "1"):
        return "Greedy Pass@1", "right with the likeliest tokens"
    return {
        "pass": (f"pass@{k}", f"at least one of {k} samples right"),
        "avg": (f"avg@{k}", f"mean accuracy of {k} samples"),
        "maj": (f"maj@{k}", f"right by majority of {k} samples"),
    }[kind]


def _cell(before: Triple | None, after: Triple | None, kind: str, num_runs: int) -> _Cell:
    digits = {"tokens": 1, "nats": 3}.get(kind)
    if num_runs > 1:  # seeds that agree have no range worth a line
        before, after = (None if t is None else (t[0], None, None) if t[1] == t[2] else t for t in (before, after))

    def show(triple: Triple | None) -> str:
        if triple is None:
            return "–"
        return show_percent(triple[0]) if digits is None else f"{triple[0]:.{digits}f}"

    def reach(triple: Triple | None) -> str:
        if triple is None or triple[1] is None or triple[2] is None:
            return ""
        return show_interval(triple) if digits is None else f"{triple[1]:.{digits}f}–{triple[2]:.{digits}f}"

    change = ""
    if before is not None and after is not None:
        scale, unit, places = (100, " pts", 1) if digits is None else (1, "", digits)
        delta = round(scale * (after[0] - before[0]), places)
        change = f"{show_sign(delta)}{abs(delta):.{places}f}{unit}"
    verdict = verdict_of(before, after) if kind == "share" and num_runs == 1 else ""
    picture = draw_interval(before, after) if kind == "share" and (before or after) else Markup("")
    return _Cell(show(before), show(after), reach(before), reach(after), change, verdict, picture)
