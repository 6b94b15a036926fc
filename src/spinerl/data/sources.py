"""Where rows come from: files, standard input, suites, folders and the hub, all as one `Table` of plain dicts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spinerl import tiny
from spinerl.config import STANDARD_INPUT, DataConfig
from spinerl.data import hub
from spinerl.data.benchmarks import BENCHMARKS
from spinerl.data.definitions import Definition, suite_of
from spinerl.data.files import ENDINGS, kind_by_name, look_at
from spinerl.data.standard_input import kept_input
from spinerl.data.tables import SourceRow, Table, joined, read_table
from spinerl.errors import InputError, did_you_mean

__all__ = ["open_file", "open_table", "suite_gold"]


def open_table(data: DataConfig, definition: Definition | None) -> Table:
    """The rows that the (resolved) `data` names.

    In this order: data.path, standard input, a bundled suite, a file, a definition's place, a folder, a hub data set.
    Raises InputError when there is nothing of that name, naming the nearest benchmark or suite.
    """
    if data.path is not None:
        return _open_local(Path(data.path), data, definition, key="data.path")
    if data.name == STANDARD_INPUT:
        table = read_table(kept_input(data), "standard input")
        return replace(table, folder=Path.cwd())
    suite = suite_of(data.name)
    if suite is not None and definition is not None and definition.path is not None:
        fresh = tiny.fresh_suite(*suite)
        if fresh is None:
            return open_file(Path(definition.path), data.name)
        rows = [SourceRow(f"row {number}", number, cells) for number, cells in enumerate(fresh[0])]
        columns = tuple(dict.fromkeys(key for cells in fresh[0] for key in cells))
        return Table(data.name, columns, None, lambda _wanted: rows, "bundled")
    if definition is not None and definition.path is not None:
        return _open_local(Path(definition.path), data, definition, key=f"path in {data.name}")
    if definition is not None and definition.hub is not None:
        dataset = hub.open_hub(definition.hub, data.config, data.split, definition.licence)
        return _of_dataset(dataset, definition.hub, None)
    path = Path(data.name)
    if kind_by_name(path) is not None or os.path.lexists(path):
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
        f"({', '.join(ENDINGS)}), - for standard input, a folder, a definition (.yaml), owner/name on the hub, "
        f"{', '.join(known)}"
    )


def open_file(
    path: Path, source: str | None = None, *, key: str = "data", kind: str = "auto", encoding: str = "auto"
) -> Table:
    """The rows of a file; `spinerl.data.tables.read_table` says how each kind is read.

    Raises InputError for what is missing, no file, empty, or not of its kind.
    """
    file = look_at(path, f"{key}={path}", kind, encoding, hint=key != "data.gold")
    return read_table(file, source or str(path))


def suite_gold(name: str) -> Path | dict[str, str]:
    """The gold file that comes with the bundled suite of this name, `tiny/shift-a`; of fresh questions the answers."""
    suite = suite_of(name)
    assert suite is not None
    fresh = tiny.fresh_suite(*suite)
    return tiny.gold_path(*suite) if fresh is None else fresh[1]


def _open_local(path: Path, data: DataConfig, definition: Definition | None, key: str) -> Table:
    if not os.path.isdir(path):
        return open_file(path, key=key, kind=data.format, encoding=data.encoding)
    own = definition or Definition()
    dataset = hub.open_folder(
        path,
        data.config,
        data.split,
        config_asked=data.config not in (None, own.config),
        split_asked=data.split not in (None, own.split),
    )
    if isinstance(dataset, list):
        tables = [open_file(file, key=key, encoding=data.encoding) for file in dataset]
        return joined(tables, str(path), path)
    return _of_dataset(dataset, str(path), path)


def _of_dataset(dataset: Any, source: str, folder: Path | None) -> Table:
    if len(dataset) == 0:
        raise InputError(f"{source} is empty: the split must hold at least one row; see data.split")

    def rows(wanted: Sequence[str]) -> Iterator[SourceRow]:
        for number, cells in enumerate(hub.plain_rows(dataset, list(wanted))):
            yield SourceRow(f"row {number}", number, cells)

    what = "a data set on the hub" if folder is None else "a data set's folder"
    return Table(source, tuple(dataset.column_names), folder, rows, what)
