"""Files of every kind as rows: their columns, and the rows one after the other, without the whole file in memory."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinerl.data import files
from spinerl.data.files import DataFile, check_unpacked, lines_in
from spinerl.data.guesses import delimiter_of
from spinerl.errors import InputError, memory_line, reason_of
from spinerl.lines import counted

if TYPE_CHECKING:
    import pyarrow

__all__ = ["SourceRow", "Table", "joined", "name_list", "read_table"]

_BATCH_ROWS = 200
"""Rows of a Parquet or Arrow file that are in memory at a time."""
_NUL = "holds a NUL character, as damaged files and those that are no text do; write it again"


@dataclass(frozen=True)
class SourceRow:
    """One row: `where` is for people, `number` counts from 0; without `cells`, `problem` says why."""

    where: str
    number: int
    cells: Mapping[str, Any] | None
    problem: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of one source.

    `columns` are all there are; `rows(wanted)` reads at least the wanted ones, as often as it is called.  `folder` is
    where the rows lie and the paths in them start; None on the hub.  `reading` says how they are read, for people;
    `flat`: all cells are texts, so that a list or a chat is JSON text.
    """

    source: str
    columns: tuple[str, ...]
    folder: Path | None
    read: Callable[[Sequence[str]], Iterable[SourceRow]]
    reading: str = ""
    flat: bool = False

    def rows(self, wanted: Iterable[str]) -> Iterator[SourceRow]:
        asked = set(wanted)
        yield from self.read([name for name in self.columns if name in asked])


def read_table(file: DataFile, source: str) -> Table:
    """The rows of a file.

    JSON lines: an object per line, blank lines ignored; a bad line becomes a SourceRow with a `problem`.  JSON: a list
    of objects, by itself or as the only list of an object.  CSV and TSV: a header, then rows; all cells are texts, an
    empty one is None.  Text: a question per line.  Parquet, Arrow: as they are.  Raises InputError for a file that is
    empty or not of its kind, some of it only while the rows are read.
    """
    return _READERS[file.kind](file, source)


def joined(tables: Sequence[Table], source: str, folder: Path) -> Table:
    """The rows of several files of flat cells, one after the other; InputError where their columns differ."""
    first = tables[0]
    other = next((table for table in tables if set(table.columns) != set(first.columns)), None)
    if other is not None:
        raise InputError(
            f"{source}: {first.source} has the columns {name_list(first.columns)}, {other.source} has "
            f"{name_list(other.columns)}; make them the same, or name one file"
        )

    def rows(wanted: Sequence[str]) -> Iterator[SourceRow]:
        number = 0
        for table in tables:
            for row in table.read(wanted):
                where = f"{Path(table.source).name}, {row.where}" if len(tables) > 1 else row.where
                yield replace(row, where=where, number=number)
                number += 1

    return Table(source, first.columns, folder, rows, first.reading, first.flat)


def name_list(names: Iterable[Any], most: int = 30) -> str:
    """Names for a one-line message: "a, b", odd ones quoted, the rest of a long list counted."""
    shown = [str(name) if str(name).isprintable() and str(name).strip() else repr(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def _of_rows(file: DataFile, source: str, read: Callable[[Sequence[str]], Iterable[SourceRow]]) -> Table:
    """A table whose columns are those of its rows."""
    columns: dict[str, None] = {}
    row = None
    for row in read(()):
        columns.update(dict.fromkeys(row.cells or ()))
    if row is None:
        raise _empty(file)
    return Table(source, tuple(columns), file.path.parent, read, file.reading)


# ---------------------------------------------------------------------------------------------------- JSON


def _jsonl(file: DataFile, source: str) -> Table:
    def rows(_wanted: Sequence[str]) -> Iterator[SourceRow]:
        number = 0
        for line_number, line in enumerate(lines_in(file, "\n"), start=1):
            if line.strip():
                yield _json_row(f"line {line_number}", number, line)
                number += 1

    return _of_rows(file, source, rows)


def _json_row(where: str, number: int, line: str) -> SourceRow:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return SourceRow(where, number, None, f"not valid JSON ({_json_problem(error)})")
    return _object_row(where, number, value)


def _json(file: DataFile, source: str) -> Table:
    with file.explained(), file.text("\n") as handle:
        text = handle.read().removeprefix("\ufeff")
    if not text.strip():
        raise _empty(file)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{source} is not valid JSON ({_json_problem(error)}); a file of one object per line must end in .jsonl"
        ) from None
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]
        if len(lists) != 1:
            raise InputError(f"{source} must hold a list of objects; found an object with keys {name_list(value)}")
        value = lists[0]
    if not isinstance(value, list):
        raise InputError(f"{source} must hold a list of objects; found {type(value).__name__}")

    def rows(_wanted: Sequence[str]) -> Iterator[SourceRow]:
        for number, cells in enumerate(value):
            yield _object_row(f"row {number}", number, cells)

    return _of_rows(file, source, rows)


def _json_problem(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    if "digits" in str(error):
        return f"a whole number of over {sys.get_int_max_str_digits():,} digits: write it as text"
    return str(error)


def _object_row(where: str, number: int, value: Any) -> SourceRow:
    if isinstance(value, dict):
        return SourceRow(where, number, value)
    return SourceRow(
        where, number, None, f'a row must be an object like {{"question": ...}}, found {type(value).__name__}'
    )


# --------------------------------------------------------------------------------------------- CSV and text


def _csv(file: DataFile, source: str) -> Table:
    head = file.head.decode(file.encoding, "replace").removeprefix("\ufeff")
    delimiter, is_said = ("\t", False) if file.kind == "tsv" else delimiter_of(head)
    records = _records(file, delimiter)
    if is_said:
        next(records, None)
    where, header = next(records, (0, []))
    names = [name.strip() for name in header]
    named = [name for name in names if name]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{file.label}, line {where}: the header names {twice!r} twice; rename one of these columns")
    if not header or next(records, None) is None:
        raise _empty(file, " under its header" if header else "")
    if not named:
        raise InputError(f"{file.label}, line {where}: the first line must name the columns, and names none")

    def rows(_wanted: Sequence[str]) -> Iterator[SourceRow]:
        own = _records(file, delimiter)
        for _ in range(1 + is_said):
            next(own)
        for number, (line, record) in enumerate(own):
            problem = _NUL if any("\0" in cell for cell in record) else _odd_length(record, names, delimiter)
            cells = {name: _csv_cell(cell) for name, cell in zip(names, record, strict=False) if name}
            yield SourceRow(f"line {line}", number, None if problem else cells, problem)

    sign = {"\t": "tabs", ",": "commas", ";": "semicolons"}.get(delimiter, repr(delimiter))
    return Table(source, tuple(named), file.path.parent, rows, f"{file.reading}, {sign} between columns", flat=True)


def _records(file: DataFile, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(the line where it begins, its cells) of every record that is no blank line."""
    reader = csv.reader(lines_in(file, ""), delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        before = csv.field_size_limit(files.MAX_CHARS)  # one for the whole process
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{file.label}, line {line}: {_csv_problem(error)}") from None
        finally:
            csv.field_size_limit(before)
        if record is None:
            return
        if record:
            yield line, record


def _csv_problem(error: csv.Error) -> str:
    advice = 'inside quotes a quote is written twice, ""; data.format=txt reads a question per line'
    if "unexpected end" in str(error):
        return f"a quote that opens here is never closed; {advice}"
    if "field limit" in str(error):
        return f"a cell of over {files.MAX_CHARS:,} characters: is its quote closed? {advice}"
    return f"a quote closes before its cell ends ({error}); {advice}"


def _odd_length(record: Sequence[str], names: Sequence[str], delimiter: str) -> str:
    if len(record) == len(names) or (len(record) > len(names) and not any(record[len(names) :])):
        return ""
    return (
        f"{counted(len(record), 'cell')} where the header names {counted(len(names), 'column')}; a text that holds "
        f"{delimiter!r} must stand in double quotes"
    )


def _csv_cell(cell: str) -> str | None:
    return cell.replace("\r\n", "\n") or None


def _txt(file: DataFile, source: str) -> Table:
    def rows(_wanted: Sequence[str]) -> Iterator[SourceRow]:
        number = 0
        for line_number, line in enumerate(lines_in(file, "\n"), start=1):
            text, problem = line.strip(), _NUL if "\0" in line else ""
            yield SourceRow(f"line {line_number}", number, None if problem else {"question": text}, problem)
            number += bool(text)

    if not any(row.cells is None or row.cells["question"] for row in rows(())):
        raise _empty(file)
    return Table(source, ("question",), file.path.parent, rows, f"{file.reading}, a question per line")


# ---------------------------------------------------------------------------------------- Parquet and Arrow


def _parquet(file: DataFile, source: str) -> Table:
    import pyarrow.parquet

    def opened() -> Any:
        return pyarrow.parquet.ParquetFile(file.path)

    with _arrow_faults(file, "Parquet"), opened() as parquet:
        schema, count = parquet.schema_arrow, parquet.metadata.num_rows

    def batches(wanted: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
        with opened() as parquet:
            yield from parquet.iter_batches(_BATCH_ROWS, columns=list(wanted))

    return _of_batches(file, source, "Parquet", schema, count, batches)


def _arrow(file: DataFile, source: str) -> Table:
    import pyarrow.ipc

    def opened(handle: Any) -> Any:
        is_file = file.head.startswith(b"ARROW1")
        return pyarrow.ipc.open_file(handle) if is_file else pyarrow.ipc.open_stream(handle)

    def all_batches() -> Iterator[pyarrow.RecordBatch]:
        with pyarrow.OSFile(str(file.path)) as handle, opened(handle) as reader:
            if hasattr(reader, "num_record_batches"):
                yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                yield from reader

    def batches(wanted: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
        for batch in all_batches():
            batch.validate(full=True)  # offsets that lead out of it would crash the process
            chosen = batch.select(list(wanted))
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield chosen.slice(start, _BATCH_ROWS)

    with _arrow_faults(file, "Arrow"):
        with pyarrow.OSFile(str(file.path)) as handle, opened(handle) as reader:
            schema = reader.schema
        count = next((batch.num_rows for batch in all_batches() if batch.num_rows), 0)
    return _of_batches(file, source, "Arrow", schema, count, batches)


def _of_batches(
    file: DataFile,
    source: str,
    format_name: str,
    schema: pyarrow.Schema,
    count: int,
    batches: Callable[[Sequence[str]], Iterator[pyarrow.RecordBatch]],
) -> Table:
    names = schema.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{file.label} has two columns {twice!r}; rename one of them")
    if not count:
        raise _empty(file)
    labels = _class_labels(schema)
    most = max(files.MAX_UNPACKED, files.MAX_RATIO * file.path.stat().st_size)

    def rows(wanted: Sequence[str]) -> Iterator[SourceRow]:
        number = unpacked = 0
        with _arrow_faults(file, format_name):
            for batch in batches(wanted):
                unpacked += batch.nbytes
                check_unpacked(unpacked, most, file.label)
                for cells in batch.to_pylist():
                    for name in labels.keys() & cells.keys():
                        cells[name] = _label(cells[name], labels[name])
                    yield SourceRow(f"row {number}", number, cells)
                    number += 1

    return Table(source, tuple(names), file.path.parent, rows, file.reading)


def _class_labels(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """The names of class labels by column, from what `datasets` writes into a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: [str(label) for label in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _label(value: Any, names: Sequence[str]) -> Any:
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


@contextmanager
def _arrow_faults(file: DataFile, format_name: str) -> Iterator[None]:
    """Inside, what pyarrow raises for a damaged file becomes an InputError."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        if memory_line(error) is not None:
            raise
        what = f"is not a readable {format_name} file"
        raise InputError(f"{file.label} {what}: {reason_of(error, 200)}") from None


def _empty(file: DataFile, where: str = "") -> InputError:
    return InputError(f"{file.label} is empty{where}: it must hold at least one row")


_READERS: dict[str, Callable[[DataFile, str], Table]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "tsv": _csv,
    "txt": _txt,
    "parquet": _parquet,
    "arrow": _arrow,
}
