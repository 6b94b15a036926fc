"""`load_data`: the questions a run adapts to, and the gold table that only evaluation reads."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from spinerl.config import STANDARD_INPUT, DataConfig
from spinerl.data.definitions import Definition, definition_of, resolve_data, suite_of
from spinerl.data.images import ImageReader
from spinerl.data.rows import RowReader, RowResult, plain_text
from spinerl.data.sources import open_file, open_table, suite_gold
from spinerl.data.tables import SourceRow, Table
from spinerl.errors import InputError
from spinerl.images import image_key
from spinerl.types import GoldTable, ImageRef, Question

__all__ = ["QuestionSet", "Scan", "load_data", "scan"]


@dataclass(frozen=True)
class QuestionSet:
    """Questions in the order of their rows; no answers.

    `fingerprint` is a SHA-256 of ids, texts and images: equal for equal questions, whatever file they came from.
    `skipped` counts rows left out, by reason; `source` says where the rows came from; `notes` what was guessed of it;
    `guessed_gold` is the column of gold answers that no key names, other than `answer`.
    """

    questions: tuple[Question, ...]
    fingerprint: str
    skipped: Mapping[str, int]
    source: str
    notes: tuple[str, ...] = ()
    guessed_gold: str | None = None


@dataclass(frozen=True)
class Scan:
    """A source opened and its columns found: what `load_data` and `check` both walk through."""

    data: DataConfig
    definition: Definition | None
    table: Table
    reader: RowReader
    gold_cells: Mapping[str, Any] | None

    @property
    def reading(self) -> str:
        """How the rows are read, for people: format, encoding, columns."""
        return f"{self.table.reading}: {self.reader.taken}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What was guessed, a line each."""
        piped = self.data.name == STANDARD_INPUT and self.data.path is None and self.data.format == "auto"
        own = (f"standard input read as {self.table.reading}; data.format=KIND says otherwise",)
        return (own if piped else ()) + self.reader.notes

    def outcomes(self) -> Iterator[tuple[SourceRow, RowResult]]:
        """Every row with what it gave; a repeated id is an error of the later row."""
        first_rows: dict[str, str] = {}
        for row in self.table.rows(self.reader.wanted()):
            outcome = self.reader.read(row)
            question = outcome.question
            if question is not None and question.id in first_rows:
                outcome = RowResult(
                    error=f"id {question.id!r} was already given in {first_rows[question.id]}: "
                    "ids must differ; fix the file or set data.columns.id",
                    reason="repeated id",
                )
            elif question is not None:
                first_rows[question.id] = row.where
                if self.gold_cells is not None and self.gold_cells.get(question.id) is not None:
                    outcome = self.reader.read(row, self.gold_cells[question.id])
            yield row, outcome


def load_data(data: DataConfig, *, answer_kind: str = "auto") -> tuple[QuestionSet, GoldTable]:
    """The questions of a data set, and apart from them the gold answers there are (often none), by id.

    `answer_kind="auto"`: `choice` for rows with options, else the data set's own kind, else `auto`.  Gold of
    multiple choice is normalized to the letter.  Rows with an empty question are left out with a count; rows
    without a gold answer are simply missing from the table.  Of images the headers are looked at; with
    data.on_bad_row=skip they are opened, so that no row is left in that a step could not use.
    Raises InputError in one line (row, value, what is allowed, the key) for the first thing that is wrong:
    a missing file or column, invalid JSON, a repeated id, an image that is not there, a gold answer
    that is none of the options, or no question at all.  `spinerl.data.check` lists all of them.  With
    data.on_bad_row=skip rows with a fault are left out with a count.

    >>> questions, gold = load_data(DataConfig(name="tiny/shift-a", max_questions=2))
    >>> len(questions.questions), len(gold), questions.questions[0].answer_kind
    (2, 2, 'number')
    """
    found = scan(data, answer_kind)
    questions: list[Question] = []
    gold: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    first_fault = ""
    for row, outcome in found.outcomes():
        if outcome.error:
            fault = f"{row.where}: {outcome.error}"
            if data.on_bad_row == "stop":
                raise InputError(f"{found.table.source}, {fault}")
            first_fault = first_fault or f"; the first fault: {fault}"
            skipped[outcome.reason] += 1
            continue
        if outcome.question is None:
            skipped[outcome.skipped] += 1
            continue
        questions.append(outcome.question)
        if outcome.gold is not None:
            gold[outcome.question.id] = outcome.gold
        if len(questions) == data.max_questions:
            break
    if not questions:
        reasons = ", ".join(f"{count} rows: {reason}" for reason, count in skipped.items())
        raise InputError(f"{found.table.source} gives no question ({reasons}); see data.columns.question{first_fault}")
    if len(questions) != data.max_questions:  # else later questions may have the gold
        check_gold_file(found, (question.id for question in questions))
    counts = MappingProxyType(dict(skipped))
    loaded = QuestionSet(
        tuple(questions),
        fingerprint(questions),
        counts,
        found.table.source,
        found.notes,
        found.reader.gold if found.reader.found_gold else None,
    )
    return loaded, MappingProxyType(gold)


def scan(data: DataConfig, answer_kind: str = "auto", *, decode: bool = False) -> Scan:
    """Opens the source and the gold file, and finds the columns; InputError if any of them is not there.

    With `decode`, images are not only looked at but opened.
    """
    definition = definition_of(data)
    resolved = resolve_data(data, definition)
    table = open_table(resolved, definition)
    gold_cells = _gold_cells(resolved)
    folder = Path(resolved.image_folder) if resolved.image_folder is not None else table.folder
    images = ImageReader(folder, resolved.max_image_pixels, decode or resolved.on_bad_row == "skip")
    reader = RowReader.of(
        table,
        resolved.columns,
        definition,
        answer_kind,
        images,
        read_gold=gold_cells is None,
        gold_extract=resolved.gold_extract,
    )
    if reader.images is not None:
        _check_image_folder(resolved, definition, table)
    return Scan(resolved, definition, table, reader, gold_cells)


def fingerprint(questions: list[Question] | tuple[Question, ...]) -> str:
    """SHA-256 over the questions' ids, texts, images' files and earlier messages, in hex."""
    digest = hashlib.sha256()
    keys: dict[ImageRef, str] = {}
    for question in questions:
        for image in question.images:
            if image not in keys:
                keys[image] = image_key(image)
        parts = [question.id, question.text, *(keys[image] for image in question.images), *question.turns]
        digest.update(json.dumps(parts, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def check_gold_file(found: Scan, ids: Iterable[str]) -> None:
    """InputError if a gold file was named and not one of its ids is among `ids`, those of all questions."""
    if found.data.gold is not None and found.gold_cells is not None and found.gold_cells.keys().isdisjoint(ids):
        raise InputError(
            f"data.gold={found.data.gold}: none of its ids is a question's id in {found.table.source}; "
            "the ids must be the same in both (see data.columns.id)"
        )


def _check_image_folder(data: DataConfig, definition: Definition | None, table: Table) -> None:
    own = definition is not None and definition.image_folder is not None
    note = f". {definition.note}" if definition is not None and own and definition.note else ""
    if data.image_folder is not None:
        folder = Path(data.image_folder)
        if not folder.is_dir():
            what = "is a file: unpack it" if folder.exists() else "there is no such folder"
            raise InputError(f"data.image_folder={folder}: {what}; data.columns.images=null leaves images out{note}")
    elif own and table.folder is None:
        raise InputError(
            f"the images of {table.source} are files next to its rows: set data.image_folder=FOLDER, "
            f"or data.columns.images=null to leave them out{note}"
        )


def _gold_cells(data: DataConfig) -> dict[str, Any] | None:
    """Gold cells by id from data.gold or a suite's gold file; None where there is no such file."""
    if data.gold is not None:
        path, key = Path(data.gold), "data.gold"
    elif suite_of(data.name) is not None and data.path is None and data.columns.gold is not None:
        known = suite_gold(data.name)
        if isinstance(known, dict):
            return dict(known)
        path, key = known, "data"
    else:
        return None
    table = open_file(path, key=key)
    cells: dict[str, Any] = {}
    first_rows: dict[str, str] = {}
    for row in table.rows(("id", "answer")):
        where = f"{path}, {row.where}"
        if row.cells is None:
            raise InputError(f"{where}: {row.problem}")
        row_id = row.cells.get("id")
        if not isinstance(row_id, str | int) or "answer" not in row.cells:
            raise InputError(f'{where}: a gold row must be {{"id": ..., "answer": ...}}; see {key}')
        row_id = plain_text(row_id) or ""
        if row_id in first_rows:
            raise InputError(f"{where}: id {row_id!r} was already given in {first_rows[row_id]}; ids must differ")
        first_rows[row_id] = row.where
        cells[row_id] = row.cells["answer"]
    return cells
