"""Stage 2 of reading, the marks: boxes and answer tags, the last one first.  docs/answers.md, "Stage 2"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from spinerl.answers.limits import MAX_ANSWER_CHARS

__all__ = ["MAX_MARKED", "Marked", "box_content", "marked_backwards"]

MAX_MARKED = 12
"""How many boxes and tags of a response are tried."""

_BOX = ("\\boxed", "\\fbox", "\\framebox")
_TAG_NAMES = ("solution", "output", "final_answer", "final")
_MAX_TAGS = 64


class Marked(NamedTuple):
    """A box or tag: its rule, where it starts, and what it holds; None for a box that is never closed."""

    rule: str
    start: int
    content: str | None


def marked_backwards(text: str) -> Iterator[Marked]:
    """Boxes and answer tags, the last one first.  A box inside a tag is the tag's content."""
    tags = _tags(text) if "</" in text else []
    box = _last_box(text, len(text))
    count = 0
    while (box >= 0 or tags) and count < 4 * MAX_MARKED:
        count += 1
        if tags and tags[-1].start + len(tags[-1].content or "") >= box:
            tag = tags.pop()
            inside = tag.content or ""
            inner = _last_box(inside, len(inside))
            if inner >= 0:
                yield Marked("box", tag.start, box_content(inside, inner))
            else:
                yield tag
            box = _last_box(text, tag.start) if box >= tag.start else box
            continue
        yield Marked("box", box, box_content(text, box))
        box = _last_box(text, box)


def _last_box(text: str, end: int) -> int:
    if "box" not in text:
        return -1
    return max(text.rfind(command, 0, end) for command in _BOX)


def _tags(text: str) -> list[Marked]:
    """The closed answer tags among the last opening ones, in order; those named "answer" where there are any."""
    lower = text.lower()
    if len(lower) != len(text):  # a letter that has no lower case of one character
        lower = text
    for names in (("answer",), _TAG_NAMES):
        found = []
        for name in names:
            limit = len(text)
            for _ in range(_MAX_TAGS):
                opening = lower.rfind(f"<{name}>", 0, limit)
                if opening < 0:
                    break
                start = opening + len(name) + 2
                close = lower.find(f"</{name}>", start, limit + len(name) + 3)
                if close >= 0:
                    found.append(Marked("tag", start, text[start:close]))
                limit = opening
        if found:
            return sorted(found, key=lambda tag: tag.start)
    return []


def box_content(text: str, start: int) -> str | None:
    """The content of the box command at `start`: its balanced braces, or one token without braces; None if
    unclosed."""
    simple = _SIMPLE_BOX.match(text, start, start + 4 * MAX_ANSWER_CHARS)
    if simple is not None:
        return simple[1]
    index = start + next(len(command) for command in _BOX if text.startswith(command, start))
    begin = index
    while index < len(text) and text[index] == " ":
        index += 1
    if index >= len(text):
        return None
    if text[index] != "{":
        match = re.compile(r"[^\s${}]{1,600}").match(text, index)
        apart = index > begin or text[index].isdigit()
        return match[0].rstrip(".,;") if match and apart else None
    depth = 0
    for match in _BRACE.finditer(text, index, index + 4 * MAX_ANSWER_CHARS):
        position = match.start()
        c = text[position]
        if c == "{":
            depth += text[position - 1] != "\\" or not _is_escaped(text, position)
        elif c == "}" and (text[position - 1] != "\\" or not _is_escaped(text, position)):
            depth -= 1
            if depth == 0:
                return text[index + 1 : position]
    return None


_BRACE = re.compile(r"[{}]")
# braces up to two deep, written so that no character can be matched in two ways
_FLAT = r"[^{}\\]*(?:\\.[^{}\\]*)*"
_SIMPLE_BOX = re.compile(rf"\\boxed\{{({_FLAT}(?:\{{{_FLAT}(?:\{{{_FLAT}\}}{_FLAT})*\}}{_FLAT})*)\}}", re.S)


def _is_escaped(text: str, position: int) -> bool:
    count = 0
    while count < 2 * MAX_ANSWER_CHARS and text[position - 1 - count] == "\\":
        count += 1
    return count % 2 == 1
