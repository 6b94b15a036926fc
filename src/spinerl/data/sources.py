"""Where rows come from: files, suites, folders and the hub, all as one `Table` of plain dicts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spinerl import tiny
from spinerl.config import DataConfig
from spinerl.data import hub
from spinerl.data.benchmarks import BENCHMARKS
from spinerl.data.definitions import Definition, suite_of
from spinerl.errors import InputError, did_you_mean
from spinerl.lines import lines_of, read_text

__all__ = ["SourceRow", "Table", "name_list", "open_file", "open_table", "suite_gold"]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")


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

    `columns` are all there are; `rows(wanted)` reads at least the wanted ones.  `folder` is where the rows lie and
    the paths in them start; None on the hub.
    """

    source: str
    columns: tuple[str, ...]
    folder: Path | None
    _rows: Iterable[SourceRow] | None = None
    _dataset: Any = None

    def rows(self, wanted: Iterable[str]) -> Iterator[SourceRow]:
        if self._rows is not None:
            yield from self._rows
            return
        columns = [name for name in self.columns if name in set(wanted)]
        for number, cells in enumerate(hub.plain_rows(self._dataset, columns)):
            yield SourceRow(f"row {number}", number, cells)


def open_table(data: DataConfig, definition: Definition | None) -> Table:
    """The rows that the (resolved) `data` names.

    In this order: data.path, a bundled suite, a file, a definition's place, a folder, a hub data set.
    Raises InputError when there is nothing of that name, naming the nearest benchmark or suite.
    """
    if data.path is not None:
        return _open_local(Path(data.path), data, definition, key="data.path")
    suite = suite_of(data.name)
    if suite is not None and definition is not None and definition.path is not None:
        fresh = tiny.fresh_suite(*suite)
        if fresh is None:
            return open_file(Path(definition.path), data.name)
        rows = [SourceRow(f"row {number}", number, cells) for number, cells in enumerate(fresh[0])]
        return Table(data.name, tuple(dict.fromkeys(key for cells in fresh[0] for key in cells)), None, rows)
    if definition is not None and definition.path is not None:
        return _open_local(Path(definition.path), data, definition, key=f"path in {data.name}")
    if definition is not None and definition.hub is not None:
        dataset = hub.open_hub(definition.hub, data.config, data.split, definition.licence)
        return _of_dataset(dataset, definition.hub, None)
    path = Path(data.name)
    if path.suffix.lower() in SUFFIXES or path.exists():
        return _open_local(path, data, definition, key="data")
    owner, slash, name = data.name.partition("/")
    if owner and name and "/" not in name and not data.name.startswith("."):
        return _of_dataset(hub.open_hub(data.name, data.config, data.split), data.name, None)
    if slash:
        raise InputError(f"data={data.name}: no such file or folder; a hub data set is written owner/name")
    known = [
        *BENCHMARKS,
        *(f"tiny/{suite}" for suite in tiny.SUITES),
        *(f"tiny-vqa/{suite}" for suite in tiny.VQA_SUITES),
    ]
    near = did_you_mean(data.name, known)
    raise InputError(
        f"data={data.name!r} is neither a file nor a known data set{near}; allowed: a file "
        f"({', '.join(SUFFIXES)}), a folder, a definition (.yaml), owner/name on the hub, {', '.join(known)}"
    )


def open_file(path: Path, source: str | None = None, *, key: str = "data") -> Table:
    """The rows of a JSONL, JSON or Parquet file.

    JSONL: an object per line, blank lines ignored; a bad line becomes a SourceRow with a `problem`.  JSON: a list
    of objects, by itself or as the only list of an object.  Raises InputError for a file that is missing, empty
    or not of its format.
    """
    source = source or str(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise InputError(f"{key}={path}: there is no such file; give a {', '.join(SUFFIXES)} file")
    if suffix not in SUFFIXES:
        kind = f"of type {suffix}" if suffix else "without an ending"
        raise InputError(f"{key}={path}: files {kind} are not read; allowed: {', '.join(SUFFIXES)}")
    try:
        if suffix == ".parquet":
            rows = _parquet_rows(path)
        else:
            text = read_text(path)
            rows = _json_rows(text, source) if suffix == ".json" else list(_jsonl_rows(text))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{key}={path} cannot be read: {error}; it must be UTF-8 text") from None
    if not rows:
        raise InputError(f"{key}={path} is empty: it must hold at least one row")
    columns = dict.fromkeys(name for row in rows if row.cells is not None for name in row.cells)
    return Table(source, tuple(columns), path.parent, rows)


def name_list(names: Iterable[Any], most: int = 30) -> str:
    """Names for a one-line message: "a, b", odd ones quoted, the rest of a long list counted."""
    shown = [str(name) if str(name).isprintable() and str(name).strip() else repr(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def suite_gold(name: str) -> Path | dict[str, str]:
    """The gold file that comes with the bundled suite of this name, `tiny/shift-a`; of fresh questions the answers."""
    suite = suite_of(name)
    assert suite is not None
    fresh = tiny.fresh_suite(*suite)
    return tiny.gold_path(*suite) if fresh is None else fresh[1]


def _open_local(path: Path, data: DataConfig, definition: Definition | None, key: str) -> Table:
    if not path.is_dir():
        return open_file(path, key=key)
    own = definition or Definition()
    dataset = hub.open_folder(
        path,
        data.config,
        data.split,
        config_asked=data.config not in (None, own.config),
        split_asked=data.split not in (None, own.split),
    )
    return _of_dataset(dataset, str(path), path)


def _of_dataset(dataset: Any, source: str, folder: Path | None) -> Table:
    if len(dataset) == 0:
        raise InputError(f"{source} is empty: the split must hold at least one row; see data.split")
    return Table(source, tuple(dataset.column_names), folder, None, dataset)


def _jsonl_rows(text: str) -> Iterator[SourceRow]:
    number = 0
    for line_number, line in enumerate(lines_of(text), start=1):
        if not line.strip():
            continue
        where = f"line {line_number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield SourceRow(where, number, None, f"not valid JSON ({_json_problem(error)})")
        else:
            yield _row(where, number, value)
        number += 1


def _json_rows(text: str, source: str) -> list[SourceRow]:
    if not text.strip():
        return []
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
    return [_row(f"row {n}", n, cells) for n, cells in enumerate(value)]


def _parquet_rows(path: Path) -> list[SourceRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is not a readable Parquet file: {' '.join(str(error).split())[:200]}") from None
    return [SourceRow(f"row {n}", n, cells) for n, cells in enumerate(table.to_pylist())]


def _json_problem(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    if "digits" in str(error):
        return f"a whole number of over {sys.get_int_max_str_digits():,} digits: write it as text"
    return str(error)


def _row(where: str, number: int, value: Any) -> SourceRow:
    if isinstance(value, dict):
        return SourceRow(where, number, value)
    return SourceRow(
        where, number, None, f'a row must be an object like {{"question": ...}}, found {type(value).__name__}'
    )
