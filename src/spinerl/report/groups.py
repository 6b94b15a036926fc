"""Runs that differ only by their seed are one group; a group answers as one run would."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spinerl.report.charts import PALETTE_SIZE, Line
from spinerl.report.read import Point, RunData, number
from spinerl.report.text import visible

__all__ = [
    "Group",
    "Triple",
    "accuracy",
    "data_of",
    "eval_row",
    "first_and_last",
    "group_runs",
    "last_part",
    "method_of",
    "nested",
    "verdict_of",
]

Triple = tuple[float, float | None, float | None]
"""(value, low, high): an accuracy with its interval, or a mean with its lowest and highest seed."""


@dataclass(frozen=True)
class Group:
    """Runs drawn as one: a single run, or several that differ only by their seed."""

    label: str
    runs: tuple[RunData, ...]
    colour: int

    @property
    def style(self) -> str:
        return f"s{self.colour % PALETTE_SIZE}"

    def line(self, key: str, label: str, dash: int = 0, scale: float = 1.0, smooth: bool = False) -> Line:
        """The metric as a curve: the run's own, or the runs' mean in a band from lowest to highest."""
        series = [_scaled(run.series(key), scale) for run in self.runs]
        if len(series) == 1:
            return Line(label, series[0], self.colour, dash, smooth=smooth)
        spans = _together(series)
        return Line(
            label,
            tuple((x, sum(values) / len(values)) for x, values in spans),
            self.colour,
            dash,
            band=tuple((x, min(values), max(values)) for x, values in spans),
            smooth=smooth,
        )

    def eval_mean(self, index: int, key: str) -> tuple[float, float | None, float | None] | None:
        """(value, low, high) of the first (0) or last (-1) evaluation; of several runs the mean and range."""
        rows = [eval_row(run, index) for run in self.runs]
        values = [(number(row.get(key)), row) for row in rows if row is not None]
        finite = [(value, row) for value, row in values if value is not None]
        if not finite:
            return None
        if len(self.runs) == 1:
            value, row = finite[0]
            return value, number(row.get(f"{key}_low")), number(row.get(f"{key}_high"))
        numbers = [value for value, _ in finite]
        return sum(numbers) / len(numbers), min(numbers), max(numbers)


def eval_row(run: RunData, index: int) -> Mapping[str, Any] | None:
    """The evaluation of the unadapted model (0), or that of the model the run ended with (-1).

    None where it was not made; where the guard kept the unadapted model, both are the same.
    """
    row = run.final_eval if index else (run.evals[0] if run.evals else None)
    if row is None:
        return None
    kept_unadapted = index == -1 and run.guard.get("kept_step") == 0
    return row if kept_unadapted or (row["step"] == 0) == (index == 0) else None


def group_runs(runs: Sequence[RunData]) -> list[Group]:
    together: dict[str, list[RunData]] = {}
    for run in runs:
        config = {key: value for key, value in run.config.items() if key not in ("seed", "run")}
        prints = [nested(run.manifest, part, "fingerprint") for part in ("model", "data")]
        together.setdefault(json.dumps([config, prints], sort_keys=True, default=str), []).append(run)
    labels = [_group_label(members) for members in together.values()]
    seen: dict[str, int] = {}
    groups = []
    for colour, (label, members) in enumerate(zip(labels, together.values(), strict=True)):
        seen[label] = seen.get(label, 0) + 1
        if labels.count(label) > 1:
            parent = members[0].folder.resolve().parent.name
            label = f"{parent}/{label}" if seen[label] == 1 or len(members) == 1 else f"{label} ({seen[label]})"
        groups.append(Group(visible(label), tuple(members), colour))
    return groups


def _group_label(members: Sequence[RunData]) -> str:
    if len(members) == 1:
        return members[0].name
    common = members[0].name[: _num_alike([run.name for run in members])]
    stem = re.sub(r"[-_. ]*seed[-_=]?\d*$|[-_. ]+s?$", "", common)
    return f"{stem or method_of(members[0])} ({len(members)} seeds)"


def _num_alike(names: Sequence[str]) -> int:
    """Letters that all names begin with."""
    return sum(1 for _ in itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False)))


def _together(series: Sequence[Sequence[Point]]) -> list[tuple[float, list[float]]]:
    """(step, values) at the steps that all of the series reached with a number."""
    tables = [{x: y for x, y in points if y is not None} for points in series]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    return [(x, [table[x] for table in tables]) for x in steps]


def _scaled(points: Iterable[Point], scale: float) -> tuple[Point, ...]:
    return tuple((x, None if y is None else y * scale) for x, y in points)


def method_of(run: RunData) -> str:
    return str(run.setting("method", "unknown method"))


def data_of(run: RunData) -> str:
    """The data set's name; of a file or folder only the last part of its path."""
    return last_part(str(run.setting("data.name") or nested(run.manifest, "data", "name") or "unknown data"))


def last_part(name: str) -> str:
    """A name, or the last part of an absolute path."""
    return name.rstrip("/").rpartition("/")[2] or name if name.startswith("/") else name


def nested(mapping: Mapping[str, Any], *keys: str) -> Any:
    value: Any = mapping
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def first_and_last(group: Group, key: str) -> tuple[float, float] | None:
    """Mean over the first and over the last tenth of the steps; None with fewer than two."""
    values = [y for _, y in group.line(key, "").points if y is not None]
    n = max(1, len(values) // 10)
    return (sum(values[:n]) / n, sum(values[-n:]) / n) if len(values) > 1 else None


def accuracy(row: Mapping[str, Any] | None, key: str) -> Triple | None:
    value = number(row.get(key)) if row is not None else None
    if row is None or value is None:
        return None
    return value, number(row.get(f"{key}_low")), number(row.get(f"{key}_high"))


def verdict_of(before: Triple | None, after: Triple | None) -> str:
    """ "rose" or "fell" if the intervals are apart, "unclear" if they overlap, "unknown" without them."""
    if before is None or after is None or None in (*before, *after):
        return "unknown"
    _, low0, high0 = before
    _, low1, high1 = after
    assert low0 is not None
    assert high0 is not None
    assert low1 is not None
    assert high1 is not None
    return "rose" if low1 > high0 else "fell" if high1 < low0 else "unclear"
