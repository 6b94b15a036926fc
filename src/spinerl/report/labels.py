"""What became of the pseudo-labels: how many are right and how many changed, and every question's own by step."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from spinerl.lines import counted
from spinerl.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Legend,
    Line,
    nice_ticks,
    show_thousands,
    svg_plot,
    x_axis,
)
from spinerl.report.groups import Group
from spinerl.report.read import RunData
from spinerl.report.text import show_percent

__all__ = ["History", "LabelView", "draw_history", "label_views"]

_MOST_ROWS = 128  # questions drawn
_NONE = "neutral"


@dataclass(frozen=True)
class _Stretch:
    """The steps from one visit of a question to its next, with the label it has meanwhile."""

    begin: int
    end: int
    label: str | None
    style: str  # CSS class of its colour
    changed: bool  # whether the label differs from that before


@dataclass(frozen=True)
class History:
    """A row per question (`names`), from its first visit on, coloured by its label; `first` and `last` are steps."""

    id: str
    title: str
    note: str
    legend: tuple[Legend, ...]
    names: tuple[str, ...]
    rows: tuple[tuple[_Stretch, ...], ...]
    first: int
    last: int
    is_empty: bool = False


@dataclass(frozen=True)
class LabelView:
    """What is shown of one run's labels."""

    label: str
    sentence: str
    course: Chart
    history: History


def label_views(groups: Sequence[Group]) -> list[LabelView]:
    """A view of the first run of each group that met a question twice."""
    views = []
    for number, group in enumerate(groups):
        run = group.runs[0]
        questions = _by_question(run.labels)
        if max(map(len, questions.values()), default=0) < 2:
            continue
        name = group.label if len(group.runs) == 1 else f"{group.label}: {run.name}"
        views.append(_view(run, name, number, questions))
    return views


def _by_question(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Each question's rows, by step; questions in the order in which they were met."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(str(row.get("id")), []).append(row)
    return found


def _view(run: RunData, name: str, number: int, questions: Mapping[str, Sequence[Mapping[str, Any]]]) -> LabelView:
    last = max(int(row["step"]) for rows in questions.values() for row in rows)
    first = min(int(row["step"]) for rows in questions.values() for row in rows)
    judged = any(isinstance(row.get("correct"), bool) for rows in questions.values() for row in rows)
    histories = [(id_, _stretches(rows, last, judged)) for id_, rows in questions.items()]
    course = _course(f"labels-{number}", run.labels, judged)
    num_flips = sum(stretch.changed for _, own in histories for stretch in own)
    num_again = sum(len(own) - 1 for _, own in histories)
    sentence = (
        f"{counted(len(questions), 'question')} had {num_again + len(questions)} visits; "
        f"{show_percent(num_flips / max(1, num_again))} of the later ones changed the label."
    )
    shown = histories
    if len(histories) > _MOST_ROWS:
        shown = [histories[round(i * (len(histories) - 1) / (_MOST_ROWS - 1))] for i in range(_MOST_ROWS)]
    ranks = {"s2": 0, "s0": 0, "s1": 1, _NONE: 2}
    shown = sorted(shown, key=lambda item: (ranks[item[1][-1].style], _last_change(item[1]), item[1][0].begin))
    entries = [("right", "s2"), ("wrong", "s1")] if judged else [("the first label", "s0"), ("another", "s1")]
    legend = tuple(Legend(word, f"{style} lane", "area") for word, style in (*entries, ("no label", _NONE)))
    some = f"{len(shown)} of {len(histories)} questions" if len(shown) < len(histories) else "A row per question"
    history = History(
        f"label-history-{number}",
        "Every question's label",
        f"{some}, from its first visit on; a dark mark is a label that changed.",
        legend,
        tuple(id_ for id_, _ in shown),
        tuple(own for _, own in shown),
        first,
        last,
    )
    return LabelView(name, sentence, course, history)


def _last_change(own: Sequence[_Stretch]) -> int:
    return max((stretch.begin for stretch in own if stretch.changed), default=0)


def _stretches(rows: Sequence[Mapping[str, Any]], last: int, judged: bool) -> tuple[_Stretch, ...]:
    found: list[_Stretch] = []
    ends = [int(row["step"]) for row in rows[1:]] + [last + 1]
    known: str | None = None  # the label before, where there was one
    for row, end in zip(rows, ends, strict=True):
        label = None if row.get("label") is None else str(row["label"])
        # With a memory the run says what a change is; without, another spelling counts as one.
        flipped = row.get("flipped")
        changed = flipped if isinstance(flipped, bool) else None not in (label, known) and label != known
        if label is None:
            style = _NONE
        elif judged:
            style = "s2" if row.get("correct") is True else "s1"
        else:
            first = next((one.label for one in found if one.label is not None), label)
            style = "s0" if label == first or not (changed or any(one.changed for one in found)) else "s1"
        found.append(_Stretch(int(row["step"]), end, label, style, changed))
        known = label if label is not None else known
    return tuple(found)


def _course(id_: str, rows: Sequence[Mapping[str, Any]], judged: bool) -> Chart:
    """Over all questions met so far, each with its label of now: those that are right, and that are its first."""
    first: dict[str, str | None] = {}
    now: dict[str, Mapping[str, Any]] = {}
    right, kept, labelled = [], [], []
    for step, own in itertools.groupby(rows, key=lambda row: row["step"]):
        for row in own:
            name = str(row.get("id"))
            now[name] = row
            if first.get(name) is None:
                first[name] = row.get("label")
        size = len(now) / 100
        right.append((float(step), sum(row.get("correct") is True for row in now.values()) / size))
        kept.append(
            (float(step), sum(first[i] is not None and row.get("label") == first[i] for i, row in now.items()) / size)
        )
        labelled.append((float(step), sum(row.get("label") is not None for row in now.values()) / size))
    series = [("right", right, "s2")] if judged else []
    series += [("the question's first", kept, "s0"), ("any label", labelled, "s7")]
    colours = {"s2": 2, "s0": 0, "s7": 7}
    lines = tuple(
        Line(label, tuple(points), colours[style], dash) for dash, (label, points, style) in enumerate(series)
    )
    return Chart(
        id_,
        "Labels of all questions met so far",
        "% of them",
        "Gold answers never reach training." if judged else "",
        lines,
        tuple(Legend(label, f"{style} d{dash}") for dash, (label, _, style) in enumerate(series)),
        floor=0.0,
        ceiling=100.0,
        zero=True,
    )


def draw_history(history: History) -> Markup:
    """The rows as one <svg>, with a title and a description in words."""
    bottom, width = HEIGHT - BOTTOM, WIDTH - LEFT - RIGHT
    height = (bottom - TOP) / len(history.rows)
    span = history.last + 1 - history.first

    def x(step: float) -> float:
        return round(LEFT + width * (step - history.first) / span, 1)

    parts: list[Markup] = []
    marks: list[str] = []
    paths: dict[str, list[str]] = {}
    for i, row in enumerate(history.rows):
        y = round(TOP + (i + 0.5) * height, 2)
        for style, group in itertools.groupby(row, key=lambda stretch: stretch.style):
            stretches = list(group)
            begin, end = x(stretches[0].begin), x(stretches[-1].end)
            paths.setdefault(style, []).append(f"M{begin},{y}h{round(end - begin, 1)}")
        marks += [f"M{x(stretch.begin)},{y}h1.6" for stretch in row if stretch.changed]
    for style, found in paths.items():
        parts.append(
            Markup('<path class="lane {s}" stroke-width="{w}" d="{d}"/>').format(
                s=style, w=round(height * 1.02, 2), d="".join(found)
            )
        )
    if marks:
        parts.append(
            Markup('<path class="lane flip" stroke-width="{w}" d="{d}"/>').format(w=round(height, 2), d="".join(marks))
        )
    steps = nice_ticks(history.first, history.last, integers=True)
    parts += x_axis([(x(step), show_thousands(step)) for step in steps], "questions", "step")
    names = {entry.style.split()[0]: entry.label for entry in history.legend}
    ends = [row[-1].style for row in history.rows]
    said = ", ".join(f"{ends.count(style)} {names[style]}" for style in names if style in ends)
    return svg_plot(history.id, history.title, f"Labels in the end: {said}.", parts)
