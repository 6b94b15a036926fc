"""What trackers are given: the lines of a run's streams as scalars, texts, tables and histograms.

The run folder is the one source: a tracker holds what stands there, under the names of docs/metrics.md.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spinerl.recipes import read_recipe

__all__ = ["Entry", "Histogram", "Table", "Tail", "flat_config", "outcome_entry", "sizes_of"]

_ORDER = ("stream.jsonl", "metrics.jsonl", "samples.jsonl", "tokens.jsonl", "guard.jsonl", "eval.jsonl")
"""The streams that trackers are given, in the order in which a step writes them."""

_COLUMNS = ("question_id", "question", "pseudo_label", "majority_frac")
_RESPONSE = ("text", "answer", "reward", "advantage", "truncated")
_LONGEST = 10_000  # characters of a text in a table


@dataclass(frozen=True)
class Table:
    """Sampled responses, a row each; cells are texts, numbers, flags or None."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Histogram:
    """Counts by bin: bin i holds edges[i] <= value < edges[i + 1], so that there is one edge more than counts."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """What one stream has of one step."""

    step: int
    scalars: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)


def sizes_of(folder: Path) -> dict[str, int]:
    """The bytes that each stream of a run has now; between two steps all of it is whole lines."""
    sizes = {}
    for name in _ORDER:
        try:
            sizes[name] = (folder / name).stat().st_size
        except OSError:  # not begun
            continue
    return sizes


class Tail:
    """Reads a run's streams from where it was last, up to given sizes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[str, int] = {}

    def read(self, sizes: Mapping[str, int]) -> list[Entry]:
        """What is new, step by step and within a step as it was written; a line that is damaged is left out."""
        found: list[tuple[tuple[int, int], Entry]] = []
        for rank, name in enumerate(_ORDER):
            rows = [row for row in self._rows(name, sizes.get(name, 0)) if isinstance(row.get("step"), int)]
            for step, of_step in itertools.groupby(rows, key=lambda row: row["step"]):
                first = name == "eval.jsonl" and step == 0  # before the guard's first look
                entry = _ENTRIES[name](step, list(of_step))
                if entry != Entry(step):
                    found.append(((step, -1 if first else rank), entry))
        return [entry for _, entry in sorted(found, key=lambda one: one[0])]

    def _rows(self, name: str, size: int) -> Iterator[dict[str, Any]]:
        begin = self._offsets.get(name, 0)
        if size <= begin:
            return
        with (self._folder / name).open("rb") as file:
            file.seek(begin)
            data = file.read(size - begin)
        self._offsets[name] = size
        for line in data.split(b"\n"):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row


def outcome_entry(folder: Path, step: int) -> Entry | None:
    """What the guard did in the end, from the manifest of a finished run; None where there was no guard."""
    try:
        outcome = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["guard"]
        return Entry(step, {"guard/kept_step": float(outcome["kept_step"])}, {"guard/outcome": str(outcome["text"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def flat_config(folder: Path) -> dict[str, Any]:
    """A run's resolved configuration by dotted key; lists and empty sections stay as they are."""
    return dict(_leaves(read_recipe(folder / "config.yaml")))


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a line that have a name of docs/metrics.md and are finite."""
    return {
        key: float(value)
        for key, value in row.items()
        if "/" in key and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _figures(step: int, rows: Sequence[Mapping[str, Any]]) -> Entry:
    return Entry(step, _numbers(rows[-1]))


def _look(step: int, rows: Sequence[Mapping[str, Any]]) -> Entry:
    """A look at the guard's probe questions: its signals, and what was found."""
    row = rows[-1]
    said = (("verdict", "reason"), ("rule", "why"))
    texts = [f"{row[what]}: {row.get(why, '')}" for what, why in said if row.get(what)]
    signals = {key: value for key, value in row.items() if not key.startswith("label/")}  # a step's have these names
    return Entry(
        step,
        _numbers({**signals, "guard/score": row.get("score")}),
        {"guard/verdict": "; ".join(texts)} if texts else {},
    )


def _answers(step: int, rows: Sequence[Mapping[str, Any]]) -> Entry:
    """Of the questions of a stream that have gold: the share answered rightly before and after adapting on them."""
    scalars = {}
    for name, key, after in (
        ("stream/greedy_accuracy", "greedy_correct", False),
        ("stream/majority_accuracy", "majority_correct", False),
        ("stream/adapted_accuracy", "greedy_correct", True),
    ):
        known = [bool(row[key]) for row in rows if (row.get("when") == "after") == after and row.get(key) is not None]
        if known:
            scalars[name] = sum(known) / len(known)
    return Entry(step, scalars)


def _samples(step: int, rows: Sequence[Mapping[str, Any]]) -> Entry:
    lines = [
        tuple(_cell(one.get(key)) for one, keys in ((row, _COLUMNS), (response, _RESPONSE)) for key in keys)
        for row in rows
        for response in row.get("responses", ())
    ]
    return Entry(step, tables={"samples": Table((*_COLUMNS, "response", *_RESPONSE[1:]), tuple(lines))})


def _cell(value: Any) -> Any:
    return value[:_LONGEST] if isinstance(value, str) else value


def _entropies(step: int, rows: Sequence[Mapping[str, Any]]) -> Entry:
    """The histograms of all tokens and of the forks; the last bin, which has no end, is as wide as the one before."""
    row = rows[-1]
    edges = [float(edge) for edge in row["edges"]]
    edges.append(2 * edges[-1] - edges[-2])
    histograms = {f"entropy/{key}": Histogram(tuple(edges), tuple(row[key])) for key in ("tokens", "forks")}
    return Entry(step, histograms=histograms)


_ENTRIES = {
    "stream.jsonl": _answers,
    "metrics.jsonl": _figures,
    "samples.jsonl": _samples,
    "tokens.jsonl": _entropies,
    "guard.jsonl": _look,
    "eval.jsonl": _figures,
}
