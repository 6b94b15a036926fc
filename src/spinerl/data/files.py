"""A file of rows, looked at: what it holds, how it is compressed and encoded; and its text, within limits."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from spinerl.data.guesses import kind_of_text
from spinerl.errors import InputError, cause_of, reason_of
from spinerl.files import kind_of

__all__ = ["ENDINGS", "MAX_CHARS", "DataFile", "kind_by_name", "lines_in", "look_at"]

ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
TEXTS = ("jsonl", "json", "csv", "tsv", "txt")

MAX_CHARS = 1 << 26
"""A longer line, or cell of a CSV file, is refused: no row is so long."""
MAX_RATIO = 200
"""What unpacks to more times its size, and to over MAX_UNPACKED bytes, is refused."""
MAX_UNPACKED = 256 << 20
_HEAD = 1 << 16
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow",  # a stream of Arrow record batches, as `datasets` writes them
    b"PK\x03\x04": "a ZIP archive (Excel's files are some)",
    b"BZh91AY&SY": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"%PDF": "a PDF file",
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"SQLite format 3": "an SQLite file",
}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class DataFile:
    """A file of rows: `kind` is one of `ENDINGS`' values, `compression` gzip, zstd or None.

    `label` names it in messages; `hint`: whether data.encoding is about it.
    """

    path: Path
    label: str
    kind: str
    compression: str | None = None
    encoding: str = "utf-8"
    head: bytes = field(default=b"", repr=False)
    hint: bool = True

    @property
    def reading(self) -> str:
        """How it is read, for people: "csv, gzip, utf-8"."""
        parts = (self.kind, self.compression, self.encoding if self.kind in TEXTS else None)
        return ", ".join(part for part in parts if part)

    def binary(self) -> BinaryIO:
        """The unpacked bytes; reading more of them than a file of this size holds is an InputError."""
        if self.compression is None:
            return self.path.open("rb")
        if self.compression == "gzip":
            source: Any = gzip.GzipFile(self.path, "rb")
        else:
            import pyarrow

            source = pyarrow.input_stream(str(self.path), compression="zstd")
        return cast(BinaryIO, io.BufferedReader(_Unpacked(source, self.path.stat().st_size, self.label), _HEAD))

    def text(self, newline: str) -> io.TextIOWrapper:
        return io.TextIOWrapper(self.binary(), encoding=self.encoding, newline=newline)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Inside, what is wrong with the bytes becomes an InputError."""
        try:
            yield
        except UnicodeError as error:
            raise InputError(self._not_text(error)) from None
        except (EOFError, zlib.error, OSError) as error:
            if self.compression is not None:
                what = f"is no whole {self.compression} file"
                raise InputError(f"{self.label} {what} ({reason_of(error)}); get or make it again") from None
            why = error.strerror if isinstance(error, OSError) and error.strerror else reason_of(error)
            raise InputError(f"{self.label} cannot be read: {why}") from None

    def _not_text(self, error: UnicodeError) -> str:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
        if self.encoding != "utf-8" or not isinstance(error, UnicodeDecodeError):
            return f"{self.label} is not text in {self.encoding} ({reason}); data.encoding says how it is encoded"
        line = None
        with suppress(OSError, EOFError, zlib.error), self.binary() as lines:  # packed, and also cut short
            line = next((n for n, line in enumerate(lines, start=1) if not _is_utf8(line)), None)
        where = f"line {line} holds byte 0x{error.object[error.start]:02x}" if line else reason
        how = "data.encoding=cp1252 (Windows) or latin-1 reads it, or " if self.hint else ""
        return f"{self.label}: files must be UTF-8 text, and {where}; {how}write it again as UTF-8"


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a compressed source, counted."""

    def __init__(self, source: Any, size: int, label: str) -> None:
        self._source, self._label, self._count = source, label, 0
        self._most = max(MAX_UNPACKED, MAX_RATIO * size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._source.read(len(buffer))
        self._count += len(found)
        check_unpacked(self._count, self._most, self._label)
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


def check_unpacked(count: int, most: int, label: str) -> None:
    """InputError for more unpacked bytes than a file may have."""
    if count > most:
        raise InputError(
            f"{label} unpacks to over {most:,} bytes, more than {MAX_RATIO} times its size: that is no file of "
            "questions; unpack it yourself if it is one"
        )


def kind_by_name(path: Path | str) -> str | None:
    """What a file holds by its ending, "csv" for `a.csv` and `a.csv.gz`; None for other endings.

    >>> kind_by_name("a.JSONL.gz"), kind_by_name("a.gz"), kind_by_name("a.xlsx")
    ('jsonl', None, None)
    """
    return ENDINGS.get(_split(Path(path))[0])


def look_at(
    path: Path,
    label: str,
    kind: str = "auto",
    encoding: str = "auto",
    *,
    guess: bool = False,
    hint: bool = True,
) -> DataFile:
    """What a file holds; InputError for what is no file, is empty, or is not what its name says.

    Compression is found from the first bytes.  Text is UTF-8, or what its byte order mark says, unless `encoding` says
    otherwise.

    Args:
        label: names the file in messages; `kind`, `encoding`: data.format and data.encoding.
        guess: find the kind from the content where neither `kind` nor the name says it.
        hint: whether data.encoding is about this file.
    """
    _check_file(path, label)
    ending, packed = _split(path)
    if kind == "auto":
        kind = ENDINGS.get(ending, "")
    if not kind and not guess:
        raise InputError(f"{label}: {_not_read(ending)}")
    file = DataFile(path, label, kind, hint=hint)
    with file.explained(), path.open("rb") as handle:
        start = handle.read(16)
    if not start:
        raise InputError(f"{label} is empty: it must hold at least one row")
    magic = next((what for sign, what in _MAGIC.items() if start.startswith(sign)), "")
    compression = magic if magic in ("gzip", "zstd") else None
    if packed and compression is None:
        what = f"it is {magic}: unpack it" if magic else "rename it if it is not compressed"
        raise InputError(f"{label} is no {COMPRESSIONS[packed]} file, as its ending {packed} says: {what}")
    file = DataFile(path, label, kind, compression, hint=hint)
    with file.explained(), file.binary() as unpacked:
        head = unpacked.read(_HEAD)
    if compression is not None:
        magic = next((what for sign, what in _MAGIC.items() if head.startswith(sign)), "")
    _check_magic(label, kind, magic)
    kind = kind or magic
    if kind in ("parquet", "arrow"):
        if compression is not None:
            raise InputError(f"{label}: only text is read compressed; unpack the {kind} file (it is packed by itself)")
        return DataFile(path, label, kind, head=head)
    encoding = _encoding_of(head, label, encoding, hint)
    if not kind:
        kind = kind_of_text(head.decode(encoding, "replace").removeprefix("\ufeff"))
    return DataFile(path, label, kind, compression, encoding, head, hint)


def lines_in(file: DataFile, newline: str) -> Iterator[str]:
    """The lines of a text file with their ends, without a byte order mark.

    InputError for a line of over MAX_CHARS characters, and for what is wrong with the bytes.

    Args:
        newline: as of `open`: "\\n" for that only, "" also for "\\r" and "\\r\\n".
    """
    with file.explained(), file.text(newline) as text:
        number = 0
        while line := text.readline(MAX_CHARS + 1):
            number += 1
            if len(line) > MAX_CHARS:
                raise InputError(f"{file.label}, line {number}: over {MAX_CHARS:,} characters, no row is so long")
            yield line if number > 1 else line.removeprefix("\ufeff")


def _check_file(path: Path, label: str) -> None:
    try:
        found = kind_of(path, follow=True)
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise InputError(f"{label} cannot be opened: {cause_of(error)}") from None
    if found is None:
        raise InputError(f"{label}: there is no such file; give a {', '.join(ENDINGS)} file")
    if found == "a file":
        return
    advice = "`-` reads standard input" if found in ("a named pipe", "a device") else "give a file"
    raise InputError(f"{label} is {found}; {advice}")


def _check_magic(label: str, kind: str, magic: str) -> None:
    """InputError where the first bytes are of something else than the kind."""
    if not magic or magic == kind or (not kind and magic in ("parquet", "arrow")):
        return
    if magic in ("gzip", "zstd"):
        raise InputError(f"{label} is compressed twice; unpack it once")
    if magic in ("parquet", "arrow"):
        raise InputError(f"{label} holds {magic.capitalize()} data, not {kind}; data.format={magic} reads it")
    raise InputError(f"{label} is {magic}; save or unpack it as one of {', '.join(ENDINGS)}")


def _encoding_of(head: bytes, label: str, encoding: str, hint: bool) -> str:
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if encoding != "auto":
        return encoding
    if marked is not None:
        return marked
    even, odd = head[::2].count(0), head[1::2].count(0)
    if even + odd > len(head) // 8:
        order = "utf-16-le" if odd > 4 * even else "utf-16-be" if even > 4 * odd else ""
        how = f"set data.encoding={order}" if hint else "write it again as UTF-8"
        what = f"looks like UTF-16 without its mark: {how}" if order else "is no text: it holds NUL bytes"
        raise InputError(f"{label} {what}")
    return "utf-8"


def _split(path: Path) -> tuple[str, str]:
    """(the ending that says what a file holds, that of its compression or ""), in lower case."""
    name, packed = os.path.splitext(path.name.lower())
    if packed not in COMPRESSIONS:
        return packed, ""
    return os.path.splitext(name)[1], packed


def _not_read(ending: str) -> str:
    kind = f"of type {ending}" if ending else "without an ending"
    advice = "save the sheet as CSV" if ending in (".xlsx", ".xls", ".ods") else "data.format=KIND says what it holds"
    return (
        f"files {kind} are not read; allowed: {', '.join(ENDINGS)}, those of text also with "
        f"{' or '.join(COMPRESSIONS)} after it; {advice}"
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
