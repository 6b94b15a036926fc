"""Files of one JSON value per line: the one way to cut a text into lines.

Only a line feed ends a line, a carriage return before it belongs to the end.  `str.splitlines` also cuts at U+2028,
U+2029, U+0085 and other separators, which JSON text may hold as they are.  A byte order mark is no part of the text.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["lines_of", "read_text"]


def read_text(file: Path, *, errors: str = "strict") -> str:
    """The UTF-8 text of a file without its byte order mark; OSError or UnicodeDecodeError as `Path.read_text`."""
    return file.read_bytes().decode("utf-8", errors).removeprefix("\ufeff")


def lines_of(text: str) -> list[str]:
    r"""The lines of a text without their ends; what follows the last line feed is a line if it holds anything.

    >>> lines_of('{"a": "one\u2028two"}\r\n{"b": 1}\n')
    ['{"a": "one\u2028two"}', '{"b": 1}']
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
