"""Questions from standard input: kept in a file while the process runs, for it can be read only once."""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from spinerl.config import DataConfig
from spinerl.data.files import COMPRESSIONS, ENDINGS, DataFile, look_at
from spinerl.errors import InputError
from spinerl.files import write_bytes

__all__ = ["copy_name", "kept_input", "write_copy"]

MAX_BYTES = 2 << 30
"""More is no set of questions, or has no end."""

_kept: tuple[Any, Path] | None = None
"""The stream that was read, and the file that holds what it had."""


def kept_input(data: DataConfig) -> DataFile:
    """What standard input holds, read at the first call.

    Its kind is `data.format`, or guessed from its content.  InputError where there is none: it is closed, empty or a
    terminal, or has over MAX_BYTES.
    """
    return look_at(_keep(), "data=- (standard input)", data.format, data.encoding, guess=True)


def copy_name(data: DataConfig) -> str:
    """The name of a copy in a run folder, whose ending says what it is: `questions.csv.gz`."""
    file = kept_input(data)
    ending = next(ending for ending, kind in ENDINGS.items() if kind == file.kind)
    packed = next((one for one, name in COMPRESSIONS.items() if name == file.compression), "")
    return f"questions{ending}{packed}"


def write_copy(file: Path) -> None:
    """Write what standard input held into a file; OSError."""
    write_bytes(file, _keep().read_bytes())


def _keep() -> Path:
    global _kept
    if _kept is not None and _kept[0] is sys.stdin:
        return _kept[1]
    stream = sys.stdin
    if stream is None or stream.closed:
        raise InputError("data=-: standard input is closed; pipe questions into it, or name a file")
    if stream.isatty():
        raise InputError("data=-: standard input is a terminal; pipe questions into it: cat FILE | spinerl ... data=-")
    handle, name = tempfile.mkstemp(prefix="spinerl-input-")
    atexit.register(_remove, name)
    with os.fdopen(handle, "wb") as out:
        count = 0
        while chunk := stream.buffer.read(1 << 20):
            count += len(chunk)
            if count > MAX_BYTES:
                raise InputError(f"data=-: standard input goes on after {MAX_BYTES:,} bytes; write it to a file")
            out.write(chunk)
    if not count:
        raise InputError("data=-: standard input is empty: it must hold at least one row")
    _kept = stream, Path(name)
    return _kept[1]


def _remove(name: str) -> None:
    with suppress(OSError):
        os.unlink(name)
