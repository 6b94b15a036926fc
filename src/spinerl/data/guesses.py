"""What is not said is guessed here, and said: what a text holds, and how the columns of a CSV file are separated."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence

from spinerl.data.columns import names_columns
from spinerl.lines import lines_of

__all__ = ["delimiter_of", "kind_of_text"]

_DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)


def kind_of_text(head: str) -> str:
    """What a text holds, by its beginning: jsonl, json, csv, tsv or txt.

    A list is JSON, and so is an object that does not end on its line; other objects are lines of JSON.  A first line
    that names a column of questions is a header.  All else is a question per line.

    >>> [kind_of_text(text) for text in ('[{"question": "2 + 3?"}]', '{"question": "2 + 3?"}', 'Question;Answer', '?')]
    ['json', 'jsonl', 'csv', 'txt']
    """
    text = head.lstrip()
    if text.startswith("["):
        return "json"
    first = next((line for line in lines_of(text) if line.strip()), "")
    if text.startswith("{"):
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            # A line that the head cuts off may be a long row; one that ends is the first of an object over many.
            return "json" if len(first.strip()) < 80 else "jsonl"
        return "jsonl"
    for delimiter in _DELIMITERS:
        if names_columns(_record(first, delimiter)):
            return "tsv" if delimiter == "\t" else "csv"
    return "csv" if _SEPARATOR_LINE.fullmatch(first) else "txt"


def delimiter_of(head: str) -> tuple[str, bool]:
    """(what separates the columns of a CSV text, whether its first line only says so: Excel's `sep=;`).

    The sign that makes the most columns of the header, and as many of the line after it; a comma where none does.

    >>> [delimiter_of(text) for text in ("question;answer\\n2 + 3?;5\\n", "sep=|\\nq|a", "question\\n1, 2 or 3?")]
    [(';', False), ('|', True), (',', False)]
    """
    lines = [line for line in re.split(r"\r\n|\r|\n", head) if line.strip()][:2] or [""]
    said = _SEPARATOR_LINE.fullmatch(lines[0])
    if said:
        return said[1], True
    counts = {sign: [len(_record(line, sign)) for line in lines] for sign in _DELIMITERS}
    best = max(_DELIMITERS, key=lambda sign: (len(set(counts[sign])) == 1 and counts[sign][0] > 1, counts[sign][0]))
    return best, False


def _record(line: str, delimiter: str) -> Sequence[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return []
