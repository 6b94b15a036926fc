"""The streams of a run: files of one JSON object per line, to which a run adds as it goes.

What a crash leaves of a last line is no damage.  Everything else that is not as it was written is.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from spinerl.errors import RunError
from spinerl.files import kind_of
from spinerl.lines import lines_of

__all__ = ["MOST_STEPS", "STREAMS", "append_rows", "json_line", "json_text", "read_lines", "read_rows", "type_name"]

STREAMS = (
    "metrics.jsonl",
    "eval.jsonl",
    "samples.jsonl",
    "tokens.jsonl",
    "stream.jsonl",
    "labels.jsonl",
    "guard.jsonl",
)

MOST_STEPS = 10**9
"""No run has so many: a larger step is damage."""

_MANY_PER_STEP = ("samples.jsonl", "stream.jsonl", "labels.jsonl")
_ANY_ORDER = ("eval.jsonl",)  # the weights that the guard brings back are evaluated last


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_nothing(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_flag_or_nothing(value: Any) -> bool:
    return value is None or isinstance(value, bool)


_Check = tuple[Callable[[Any], bool], str]
_NUMBER: _Check = (_is_number, "a number")
_OPTIONAL_TEXT: _Check = (_is_text_or_nothing, "a text or null")
_FLAG: _Check = (_is_flag_or_nothing, "true, false or null")

# What a run reads back, by stream: fields that every row has, and those that are right where they are there.
_NEEDED: Mapping[str, Mapping[str, _Check]] = {
    "guard.jsonl": {
        "score": _NUMBER,
        "rule": _OPTIONAL_TEXT,
        "probe/initial_support": _NUMBER,
        "probe/concentration": _NUMBER,
    },
    "labels.jsonl": {"id": (_is_text, "a text"), "label": _OPTIONAL_TEXT},
    "stream.jsonl": {"greedy_correct": _FLAG, "majority_correct": _FLAG},
}
_OPTIONAL: Mapping[str, Mapping[str, _Check]] = {
    "eval.jsonl": {"eval/truncated_frac": _NUMBER},
    "guard.jsonl": {
        "label/kept_frac": _NUMBER,
        "probe/readable_frac": _NUMBER,
        "probe/refused_frac": _NUMBER,
        "probe/shared_frac": _NUMBER,
        "verdict": _OPTIONAL_TEXT,
        "reason": _OPTIONAL_TEXT,
        "why": _OPTIONAL_TEXT,
    },
    "labels.jsonl": {"vote": _OPTIONAL_TEXT},
    "stream.jsonl": {"id": (_is_text, "a text"), "when": _OPTIONAL_TEXT},
    "metrics.jsonl": {"label/kept_frac": _NUMBER},
}


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a stream; a last line cut off by a crash is left out.

    RunError, which names the line, for one that is no JSON object, is without the number of its step, has a step where
    none such belongs, or holds another type of value than belongs there.
    """
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(read_lines(file), 1):
        fault = _fault(file.name, row, rows)
        if fault is not None:
            raise RunError(f"{file}, line {number}: {fault}")
        rows.append(row)
    return rows


def _fault(stream: str, row: Mapping[str, Any], before: list[dict[str, Any]]) -> str | None:
    """What is wrong with a row that follows these."""
    if "step" not in row:
        return "no `step` in it, so it is not of this run"
    step = row["step"]
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < MOST_STEPS:
        return f"`step` is {type_name(step)}, where a whole number from 0 up belongs"
    if stream in _ANY_ORDER:
        if any(one["step"] == step for one in before):
            return f"step {step} is there twice"
    elif before and step < before[-1]["step"]:
        return f"step {step} comes after step {before[-1]['step']}"
    elif before and step == before[-1]["step"] and stream not in _MANY_PER_STEP:
        return f"step {step} is there twice"
    needed, optional = _NEEDED.get(stream, {}), _OPTIONAL.get(stream, {})
    for key, (holds, what) in (*needed.items(), *optional.items()):
        if key not in row:
            if key in needed:
                return f"no `{key}` in it"
        elif not holds(row[key]):
            return f"`{key}` is {type_name(row[key])}, where {what} belongs"
    return None


def type_name(value: Any) -> str:
    """What JSON calls the type of a value, with the value where it is short.

    >>> type_name([1]), type_name("x"), type_name(None)
    ('a list ([1])', 'a text ("x")', 'null')
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    names = {dict: "an object", list: "a list", str: "a text"}
    try:
        shown = json.dumps(value)
    except (ValueError, RecursionError):
        shown = ""
    return f"{names.get(type(value), 'a number')}{f' ({shown})' if 0 < len(shown) <= 40 else ''}"


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file of ours; nothing for a missing file, and not a last line without its end.

    RunError for a line that is no JSON object, and for something at the path that is no file.
    """
    kind = kind_of(file, follow=True)
    if kind is None:
        return
    if kind != "a file":
        raise RunError(f"{file} is {kind}, where a file belongs")
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    for number, line in enumerate(lines_of(whole.decode("utf-8", "replace").removeprefix("\ufeff")), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise RunError(f"{file}, line {number}, is damaged: {line[:40]!r} is no JSON object")
        yield row


def append_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add lines to a file and flush them to the disk; what a crash or a full disk left of a last line goes first."""
    _cut_partial_line(file)
    with file.open("ab") as handle:
        handle.write("".join(map(json_line, rows)).encode("utf-8", "backslashreplace"))
        handle.flush()
        os.fsync(handle.fileno())


def _cut_partial_line(file: Path) -> None:
    """Remove what follows the last line feed."""
    try:
        with file.open("r+b") as handle:
            size = handle.seek(0, os.SEEK_END)
            if not size:
                return
            handle.seek(size - 1)
            if handle.read(1) != b"\n":
                handle.seek(0)
                handle.truncate(handle.read().rfind(b"\n") + 1)
    except FileNotFoundError:
        pass


def json_line(row: Mapping[str, Any]) -> str:
    """A row as a line; numbers that are not finite become null."""
    return json.dumps(_finite(row), ensure_ascii=False) + "\n"


def json_text(value: Any) -> str:
    """Indented JSON; numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """The value with non-finite numbers as None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
