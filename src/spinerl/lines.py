"""Texts of others, as lines: the one way to cut a file of one JSON value per line, and to show a text on a terminal.

Only a line feed ends a line, a carriage return before it belongs to the end.  `str.splitlines` also cuts at U+2028,
U+2029, U+0085 and other separators, which JSON text may hold as they are.  A byte order mark is no part of the text.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["counted", "lines_of", "one_line", "read_text", "visible"]

_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed: escape sequences, bells, returns
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # the direction of a line
    r"\u2028\u2029\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # line separators, marks, tags
    r"\ud800-\udfff]"  # half characters, which cannot be written at all
)


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


def visible(text: str) -> str:
    r"""The text with every character that would steer a terminal as its escape; tabs and line feeds stay.

    >>> visible("\x1b[31mred\x07 \u202eback"), visible("2:100:3 [bold]")
    ('\\x1b[31mred\\x07 \\u202eback', '2:100:3 [bold]')
    """
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    r"""`visible`, and on one line: what stood on several is joined by spaces.

    >>> one_line("No such file:\n  a.txt\r\n")
    'No such file: a.txt'
    """
    return visible(" ".join(part for line in re.split(r"\r?\n", text) if (part := line.strip(" "))))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def counted(number: int, what: str) -> str:
    """How many of something.

    >>> counted(1, "question"), counted(2, "question")
    ('1 question', '2 questions')
    """
    return f"{number} {what}{'s' * (number != 1)}"
